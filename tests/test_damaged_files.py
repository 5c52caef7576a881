"""Readers of damaged files: each gives what an undamaged file would give, or its documented error.

FUZZ_CASES in the environment sets how many damaged files each reader meets.
"""

import json
import os
import random
import shutil
import struct
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lineavae.collapse import CollapseReport, CollapseStatistics, PosteriorWriter, compare
from lineavae.collapse.files import PosteriorFileError, find_shards
from lineavae.collapse.scan import ShardResults, scan
from lineavae.data import DataError, image_cache, load_images, load_mnist, read_samples
from lineavae.data.image_files import Preparation
from lineavae.experiments import EXPERIMENTS, Config, Experiment, RunDirectoryError, execute
from lineavae.experiments.runs import quantity
from lineavae.linear import LinearVAE, Moments, Sweep, sweep
from lineavae.report.collapses import CollapseFileError, read_collapse
from lineavae.report.pictures import PictureError, read_picture
from lineavae.report.runs import read_run

CASES = int(os.environ.get("FUZZ_CASES", "200"))

# What reading one of these files of a few kB may allocate.
MEMORY = 64 << 20

RANDOM = np.random.default_rng(0)
MEAN, LOGVAR = RANDOM.standard_normal((2, 20, 3)).astype(np.float32)
SAMPLES = RANDOM.standard_normal((30, 4))
IMAGES = RANDOM.integers(0, 256, (4, 28, 28), dtype=np.uint8)


def rows_of(folder):
    """All arrays of the shards, as bytes."""
    return [
        [tensor.clone().numpy().tobytes() for tensor in block]
        for shard in find_shards([folder])
        for block in shard.blocks()
    ]


class Posteriors:
    error = PosteriorFileError
    is_checked = True

    def read(self, folder):
        return rows_of(folder)


class NpyPair(Posteriors):
    is_checked = False  # the format has no checksum: damaged numbers are other numbers

    def write(self, folder):
        np.save(folder / "x_mean.npy", MEAN)
        np.save(folder / "x_logvar.npy", LOGVAR)


class Npz(Posteriors):
    def write(self, folder):
        np.savez(folder / "x.npz", mean=MEAN, logvar=LOGVAR)


class CompressedNpz(Posteriors):
    def write(self, folder):
        np.savez_compressed(folder / "x.npz", mean=MEAN, logvar=LOGVAR)


class Safetensors(Posteriors):
    is_checked = False

    def write(self, folder):
        from safetensors.torch import save_file

        save_file(
            {"mean": torch.from_numpy(MEAN), "logvar": torch.from_numpy(LOGVAR)}, folder / "x.safetensors"
        )


class OfTorch(Posteriors):
    is_checked = False  # read where they lie, not through the zip file

    def write(self, folder):
        torch.save({"mean": torch.from_numpy(MEAN), "logvar": torch.from_numpy(LOGVAR)}, folder / "x.pt")

    def read(self, folder):
        return rows_of(folder / "x.pt")


class ChunkedHdf5(Posteriors):
    is_checked = False  # that of the format, of each chunk, is an option

    def write(self, folder):
        import h5py

        with h5py.File(folder / "x.h5ad", "w") as file:
            for name, array in (("mean", MEAN), ("logvar", LOGVAR)):
                file.create_dataset(f"obsm/{name}", data=array, chunks=(7, 3), compression="gzip")


class PlainHdf5(Posteriors):
    is_checked = False

    def write(self, folder):
        import h5py

        with h5py.File(folder / "x.h5ad", "w") as file:
            file.update({"mean": MEAN, "logvar": LOGVAR, "group/mean": MEAN})


class Parquet(Posteriors):
    is_checked = False

    def write(self, folder):
        from pyarrow import FixedSizeListArray, parquet, table

        arrays = {"mean": MEAN, "logvar": LOGVAR}
        columns = {name: FixedSizeListArray.from_arrays(x.ravel(), 3) for name, x in arrays.items()}
        parquet.write_table(table(columns), folder / "x.parquet", row_group_size=8)


class ColumnsOfParquet(Posteriors):
    is_checked = False

    def write(self, folder):
        from pyarrow import parquet, table

        arrays = {"mean": MEAN, "logvar": LOGVAR}
        columns = {f"{name}_{k}": x[:, k] for name, x in arrays.items() for k in range(3)}
        parquet.write_table(table(columns), folder / "x.parquet")


class ArrowStream(Posteriors):
    is_checked = False

    def write(self, folder):
        from pyarrow import ipc, table

        arrays = table({"mean": list(MEAN), "logvar": list(LOGVAR)})
        with ipc.new_stream(folder / "x.arrow", arrays.schema) as stream:
            stream.write_table(arrays, max_chunksize=8)


class Feather(Posteriors):
    is_checked = False

    def write(self, folder):
        from pyarrow import feather, table

        arrays = {"mean": MEAN, "logvar": LOGVAR}
        feather.write_feather(table({name: list(x) for name, x in arrays.items()}), folder / "x.feather")


class Zarr(Posteriors):
    is_checked = False
    cost = 5  # times that of others
    version = 3
    chunks, shards = "auto", None

    def write(self, folder):
        zarr = pytest.importorskip("zarr")  # there is none for Python 3.10
        group = zarr.open_group(str(folder / "x.zarr"), mode="w", zarr_format=self.version)
        for name, array in (("mean", MEAN), ("logvar", LOGVAR)):
            group.create_array(name, data=array, chunks=self.chunks, shards=self.shards)


class Zarr2(Zarr):
    version = 2
    chunks = (7, 3)


class ShardedZarr(Zarr):
    chunks, shards = (5, 3), (10, 3)


class ResumedPosteriors:
    """What a writer goes on after: the headers of its shards are read."""

    error = ValueError
    is_checked = False

    def write(self, folder):
        with PosteriorWriter(folder, rows_per_shard=8) as writer:
            for start in range(0, 20, 8):
                writer.write(MEAN[start : start + 8], LOGVAR[start : start + 8])

    def read(self, folder):
        return PosteriorWriter(folder, resume=True).num_samples


class Samples:
    error = DataError
    is_checked = False

    def write(self, folder):
        np.save(folder / "a.npy", SAMPLES)
        np.save(folder / "b.npy", np.asfortranarray(SAMPLES))

    def read(self, folder):
        return [np.asarray(samples).tobytes() for _, samples in read_samples(folder)]


class ZippedSamples(Samples):
    is_checked = True

    def write(self, folder):
        np.savez_compressed(folder / "a.npz", x=np.asfortranarray(SAMPLES))


class Idx:
    error = DataError
    is_checked = False

    def write(self, folder):
        images = struct.pack(">4I", 0x0803, *IMAGES.shape) + IMAGES.tobytes()
        (folder / "train-images-idx3-ubyte").write_bytes(images)
        (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 4) + bytes(4))

    def read(self, folder):
        return load_mnist(folder).images.tobytes()


class GzippedIdx(Idx):
    is_checked = True

    def write(self, folder):
        import gzip

        super().write(folder)
        for path in list(folder.iterdir()):
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()


class ImageArray:
    error = DataError
    is_checked = False

    def write(self, folder):
        np.save(folder / "a.npy", IMAGES)

    def read(self, folder):
        return load_images(folder / "a.npy").images.tobytes()


class PngFolder:
    error = DataError
    is_checked = True

    def write(self, folder):
        for index, image in enumerate(IMAGES[:2]):
            Image.fromarray(image).save(folder / f"{index}.{self.__class__.__name__[:3]}")

    def read(self, folder):
        # Pillow's limit, of 90 megapixels, takes seconds
        with mock.patch.object(Image, "MAX_IMAGE_PIXELS", 10_000):
            return load_images(folder, cache=folder.parent / "cache", max_corrupt=0).images.tobytes()


class JpgFolder(PngFolder):
    is_checked = False  # the format has no checksum


class CachedImages:
    """Images that were decoded before. A damaged cache is made again, but that of pixels has no checksum."""

    error = DataError
    is_checked = False
    is_made_again = True
    cost = 5

    def __init__(self, folder):
        self.images = folder
        for index, image in enumerate(IMAGES):
            Image.fromarray(image).save(folder / f"{index}.png")

    def write(self, folder):
        self.read(folder)

    def read(self, folder):
        return load_images(self.images, cache=folder, max_corrupt=0).images.tobytes()


class HalfCachedImages(CachedImages):
    """A process was stopped while it decoded them."""

    def write(self, folder):
        self.scratch = folder.parent / "scratch"
        calls = []

        def decode(*arguments):
            calls.append(arguments)
            if len(calls) > 3:  # the first tells the shape
                raise KeyboardInterrupt
            return decode_image(*arguments)

        decode_image = Preparation.decode
        with (
            mock.patch.object(image_cache, "_BLOCK_IMAGES", 1),
            mock.patch.object(Preparation, "decode", decode),
            pytest.raises(KeyboardInterrupt),
        ):
            super().read(folder)

    def read(self, folder):
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.copytree(folder, self.scratch)
        return super().read(self.scratch)


class SavedMoments:
    error = ValueError
    is_checked = True

    def write(self, folder):
        Moments.from_data(SAMPLES).save(folder / "moments.safetensors")

    def read(self, folder):
        moments = Moments.load(folder / "moments.safetensors")
        return moments.num_samples, moments.sample_mean.tolist(), moments.covariance.tolist()


class SavedSweep:
    error = ValueError
    is_checked = True

    def write(self, folder):
        grid = {"sigma2": [0.5, 2.0], "latent_dim": 2}
        moments = Moments.from_data(SAMPLES)
        options = {"record": ("elbo", "gap"), "learn_sigma2": False, "progress": False}
        sweep(moments, grid, steps=2, **options).save(folder / "sweep.safetensors")

    def read(self, folder):
        found = Sweep.load(folder / "sweep.safetensors").dataset
        return [(name, values.values.tobytes()) for name, values in found.variables.items()]


class SweepCheckpoint(SavedSweep):
    def write(self, folder):
        self.run(folder, False)

    def read(self, folder):
        return self.run(folder, True).dataset.elbo.values.tolist()

    def run(self, folder, resume):
        options = {"learn_sigma2": False, "checkpoint": folder, "resume": resume, "progress": False}
        return sweep(Moments.from_data(SAMPLES), {"latent_dim": 2}, steps=2, **options)


class SavedModel:
    error = ValueError
    is_checked = True

    def write(self, folder):
        LinearVAE(4, 2, generator=torch.Generator().manual_seed(0)).save(folder / "model.safetensors")

    def read(self, folder):
        model = LinearVAE.load(folder / "model.safetensors")
        return [parameter.tolist() for parameter in model.parameters()]


class Checkpoint:
    error = ValueError
    is_checked = True

    def fit(self, folder, steps, **options):
        model = LinearVAE(4, 2, generator=torch.Generator().manual_seed(0))
        path = folder / "checkpoint.safetensors"
        history = model.fit(SAMPLES, steps=steps, checkpoint=path, progress=False, **options)
        return [parameter.tolist() for parameter in model.parameters()], history.elbo.tolist()

    def write(self, folder):
        self.fit(folder, 3)

    def read(self, folder):
        return self.fit(folder, 3, resume=True)


class FinishedShard:
    error = PosteriorFileError
    is_checked = True

    def __init__(self, folder):
        np.savez(folder / "x.npz", mean=MEAN, logvar=LOGVAR)
        self.shards = find_shards([folder])

    def scan(self, folder):
        return scan(self.shards, [0.01, 0.1], ShardResults(folder, [0.01, 0.1]))

    def write(self, folder):
        self.scan(folder)

    def read(self, folder):
        return [tensor.tolist() for tensor in self.scan(folder)]


def count(config, run_dir):
    return {
        "data": config.images.name,
        "config": {"num_images": config.num_images},
        "quantities": {"seed": quantity(config.seed, "1", published=0.0)},
        "curves": {"numbers": np.arange(5.0), "table": np.asfortranarray(np.eye(3))},
        "tables": {},
        "claims": [],
    }


class RunDirectory:
    error = RunDirectoryError
    is_checked = True
    config = Config(num_images=10)
    experiment = Experiment(
        "count", "Figure 0", {"quick": config}, count, {"figure-0": lambda results: Figure(figsize=(1, 1))}
    )

    def write(self, folder):
        execute(self.experiment, self.config, folder)
        (folder / "environment.json").unlink()  # which nothing reads, nor these tables for people
        shutil.rmtree(folder / "curves")

    def read(self, folder):
        run = execute(self.experiment, self.config, folder)
        assert run.skipped
        curves = {name: curve.tolist() for name, curve in run.results["curves"].items()}
        return json.dumps([run.results["data"], run.results["config"], run.results["quantities"], curves])


class ReportedRun(RunDirectory):
    """As a report reads it: what it says of the environment has no checksum."""

    is_checked = False

    def write(self, folder):
        execute(self.experiment, self.config, folder)
        shutil.rmtree(folder / "curves")

    def read(self, folder):
        with mock.patch.dict(EXPERIMENTS.data, {"count": self.experiment}):
            return read_run(folder)


class PngPicture:
    error = PictureError
    is_checked = False
    suffix = "PNG"

    def write(self, folder):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2])
        figure.savefig(folder / f"figure.{self.suffix}")

    def read(self, folder):
        return read_picture(folder / f"figure.{self.suffix}")


class SvgPicture(PngPicture):
    suffix = "svg"


class SavedReport:
    error = ValueError
    is_checked = False

    def write(self, folder):
        statistics = CollapseStatistics(latent_dim=3)
        statistics.update(MEAN, LOGVAR)
        self.save(folder, statistics.compute())

    def save(self, folder, report):
        report.save(folder / "report.json")

    def read(self, folder):
        return CollapseReport.load(folder / "report.json").at().to_dict()


class ShownComparison(SavedReport):
    """As the page reads it."""

    error = CollapseFileError

    def save(self, folder, report):
        (folder / "models.json").write_text(json.dumps(compare([report, report]).to_dict()))

    def read(self, folder):
        with mock.patch("lineavae.report.collapses._draw"):
            view = read_collapse(folder / "models.json")
        return view.rows, view.facts


READERS = [
    NpyPair,
    Npz,
    CompressedNpz,
    Safetensors,
    OfTorch,
    ChunkedHdf5,
    PlainHdf5,
    Parquet,
    ColumnsOfParquet,
    ArrowStream,
    Feather,
    Zarr,
    Zarr2,
    ShardedZarr,
    ResumedPosteriors,
    Samples,
    ZippedSamples,
    Idx,
    GzippedIdx,
    ImageArray,
    PngFolder,
    JpgFolder,
    CachedImages,
    HalfCachedImages,
    SavedMoments,
    SavedSweep,
    SweepCheckpoint,
    SavedModel,
    Checkpoint,
    FinishedShard,
    RunDirectory,
    ReportedRun,
    PngPicture,
    SvgPicture,
    SavedReport,
    ShownComparison,
]

HEADER_TEXTS = [
    b"(" * 40,
    b"[" * 40,
    b"-" * 40,
    b"9" * 30,
    b"{'a':",
    b"None",
    b"1e999",
    b"\xff\xfe",
    b'"',
    b"'",
    b"\x00",
]


def damage(content, chance):
    """Flip bits, cut, repeat, or overwrite a part: a length, or a piece of the header's text."""
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        # half of it near the beginning or the end, where headers and directories are
        near = min(len(content), 300)
        where = chance.choice(
            [chance.randrange(len(content)), chance.randrange(near), -1 - chance.randrange(near)]
        )
        where %= len(content)
        kind = chance.randrange(5)
        if kind == 0:
            content[where] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[where:]
            content = content or bytearray(1)
        elif kind == 2:
            size = chance.choice([1, 2, 4, 8])
            number = chance.choice([0, 1, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
            content[where : where + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 3:
            text = chance.choice(HEADER_TEXTS)
            content[where : where + chance.choice([0, len(text)])] = text
        else:
            content[where:where] = content[where : where + chance.randrange(1, 60)]
    return bytes(content)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_damaged_files(tmp_path, reader, monkeypatch):
    chance = random.Random(reader.__name__)
    folder, source = tmp_path / "files", tmp_path / "source"
    folder.mkdir()
    source.mkdir()
    reader = reader() if reader.__init__ is object.__init__ else reader(source)
    reader.write(folder)
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    expected, refused, tried = reader.read(folder), 0, 0
    tracemalloc.start()
    for _ in range(CASES // getattr(reader, "cost", 1)):
        path = chance.choice([path for path in whole if path.suffix != ".png"])
        path.write_bytes(damaged := damage(whole[path], chance))
        if damaged == whole[path]:
            continue
        tried += 1
        tracemalloc.reset_peak()
        found, message = None, None
        try:
            found = reader.read(folder)
        except reader.error as error:
            message = str(error)
            refused += 1
        assert message is None or str(folder) in message
        assert message is not None or found == expected or not reader.is_checked
        assert tracemalloc.get_traced_memory()[1] < MEMORY
        path.write_bytes(whole[path])
    tracemalloc.stop()
    assert refused == 0 if getattr(reader, "is_made_again", False) else refused > tried / 4
