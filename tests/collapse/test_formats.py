"""Posteriors in files that anndata, h5py, pandas, pyarrow and zarr wrote, against NumPy in float64."""

import json
import pickle
import sys
import warnings

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import scipy.sparse
import torch

from lineavae.collapse.files import Keys, PosteriorFileError, Shard, find_shards
from lineavae.collapse.scan import ShardResults, scan

try:
    import zarr
except ModuleNotFoundError:  # there is none for Python 3.10
    zarr = None

NUM_SAMPLES, LATENT_DIM = 9_000, 257
IS_ZARR_3 = zarr is not None and zarr.__version__ >= "3"


def draw(num_samples=NUM_SAMPLES, latent_dim=LATENT_DIM):
    """Means and variances as scvi-tools names them; every third latent is collapsed."""
    rng = np.random.default_rng(0)
    mean, logvar = rng.standard_normal((2, num_samples, latent_dim)).astype(np.float32)
    mean[:, ::3] *= 1e-3
    logvar[:, ::3] *= 1e-3
    return {"qz_m": mean, "qz_v": np.exp(logvar)}


def save_anndata(path, arrays, **options):
    anndata = pytest.importorskip("anndata")
    obs = pd.DataFrame({"batch": 0.0}, index=[str(row) for row in range(NUM_SAMPLES)])
    # what is no array is no concern, unless it is asked for
    others = {"frame": obs, "sparse": scipy.sparse.csr_array((NUM_SAMPLES, 2))}
    data = anndata.AnnData(np.zeros((NUM_SAMPLES, 1), np.float32), obs, obsm={**arrays, **others})
    data.layers["qz_m"] = data.X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its next version, or pandas' next, will do
        if path.suffix == ".zarr":
            data.write_zarr(path)
        else:
            data.write_h5ad(path, **options)


def save_h5(path, arrays, **options):
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)


def save_zarr(path, arrays, zarr_format=2, **options):
    if zarr is None:
        pytest.skip("zarr is not installed")
    group = zarr.open_group(str(path), mode="w", **({"zarr_format": zarr_format} if IS_ZARR_3 else {}))
    create = group.create_array if IS_ZARR_3 else group.create_dataset
    for name, array in arrays.items():
        create(name, data=array, chunks=(1000, 100), **options)


def wide(arrays):
    """A table with a column for each latent, not in the order of their numbers."""
    columns = {f"{name}_{k}": array[:, k] for name, array in arrays.items() for k in range(array.shape[1])}
    return pa.table(dict(sorted(columns.items())))


def lists(arrays):
    return pa.table(
        {name: pa.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1]) for name, x in arrays.items()}
    )


def save_pandas(path, arrays):
    pd.DataFrame({name: list(array) for name, array in arrays.items()}).to_parquet(path)


def save_stream(path, arrays):
    with pa.ipc.new_stream(path, lists(arrays).schema) as writer:
        writer.write_table(lists(arrays), max_chunksize=1000)


PARQUET = {"row_group_size": 4000}
WRITERS = {
    "h5ad": ("x.h5ad", save_anndata),
    "h5ad, gzip": ("x.h5ad", lambda *args: save_anndata(*args, compression="gzip")),
    "h5": ("x.h5", save_h5),
    "h5, chunks": ("x.hdf5", lambda *args: save_h5(*args, chunks=(700, 100), compression="lzf")),
    "anndata's zarr": ("x.zarr", save_anndata),
    "zarr 2": ("x.zarr", save_zarr),
    "zarr 3": ("x.zarr", lambda *args: save_zarr(*args, zarr_format=3)),
    "zarr 3, shards": ("x", lambda *args: save_zarr(*args, zarr_format=3, shards=(2000, 300))),
    "parquet, wide": ("x.parquet", lambda path, x: pa.parquet.write_table(wide(x), path, **PARQUET)),
    "parquet, lists": ("x.parquet", lambda path, x: pa.parquet.write_table(lists(x), path, **PARQUET)),
    "parquet, pandas": ("x.parquet", save_pandas),
    "feather": ("x.feather", lambda path, x: pa.feather.write_feather(wide(x), path, chunksize=1000)),
    "arrow, stream": ("x.arrow", save_stream),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_statistics_are_those_of_the_arrays(tmp_path, writer):
    if not IS_ZARR_3 and writer in ("anndata's zarr", "zarr 3", "zarr 3, shards"):
        pytest.skip("of zarr 3")
    name, save = WRITERS[writer]
    arrays = draw()
    save(tmp_path / name, arrays)
    (shard,) = find_shards([tmp_path / name])
    assert (shard.num_samples, shard.latent_dim, shard.kind) == (NUM_SAMPLES, LATENT_DIM, "variance")
    again = Shard.from_json(shard.to_json())
    assert again == shard
    mean = torch.cat([mean.clone() for mean, _ in again.blocks()])
    assert np.array_equal(mean, arrays["qz_m"])

    m, v = (array.astype(np.float64) for array in arrays.values())
    kl = 0.5 * (m**2 + v - np.log(v) - 1)
    statistics = scan([shard], [1e-3, 0.1])
    assert np.array_equal(statistics.counts.T, [(kl < epsilon).sum(0) for epsilon in (1e-3, 0.1)])
    np.testing.assert_allclose(statistics.moments[:, 1], kl.mean(0), rtol=2e-4)


def of_anndata(path, **obsm):
    """A file in the layout of AnnData's."""
    with h5py.File(path, "w") as file:
        for name, array in obsm.items():
            file.create_group("obsm") if "obsm" not in file else None
            file["obsm"][name] = array


ZEROS, ONES = np.zeros((4, 2)), np.ones((4, 2))
MINIFIED = {"scvi_latent_qzm": ZEROS, "scvi_latent_qzv": ONES}


def test_minified_models_of_scvi_tools(tmp_path):
    """A pair is of one model; beside it there may be what it was made of."""
    of_anndata(tmp_path / "x.h5ad", X_pca=ZEROS, X_latent_qzm=ZEROS + 3, X_latent_qzv=ONES + 1, **MINIFIED)
    names = {}
    for keys in (Keys(), Keys(mean="X_latent_qzm"), Keys(mean="X_latent_qzm", variance="scvi_latent_qzv")):
        (shard,) = find_shards([tmp_path / "x.h5ad"], keys)
        ((mean, logvar),) = shard.blocks()
        names[keys] = mean[0, 0].item(), logvar.exp()[0, 0].item()
    assert list(names.values()) == [(0, 1), (3, pytest.approx(2)), (3, 1)]
    of_anndata(tmp_path / "x.h5ad", X_latent_qzm=ZEROS, X_latent_qzv=ONES)
    assert find_shards([tmp_path])[0].kind == "variance"
    of_anndata(tmp_path / "x.h5ad", totalvi_latent_qzm=ZEROS, totalvi_latent_qzv=ONES, **MINIFIED)
    with pytest.raises(
        PosteriorFileError, match="'scvi_latent_qzm' and 'totalvi_latent_qzm' may all be the mean: name it by"
    ):
        find_shards([tmp_path])
    of_anndata(tmp_path / "x.h5ad", X_pca=ZEROS, X_umap=ZEROS)
    with pytest.raises(
        PosteriorFileError, match=r"no mean, .* among 'X_pca', 'X_umap': name it by --mean-key"
    ):
        find_shards([tmp_path])


def test_in_a_group_of_hdf5(tmp_path):
    path, keys = tmp_path / "x.h5", Keys(mean="train/mean", variance="train/var")
    with h5py.File(path, "w") as file:
        file["train/mean"], file["train/var"] = ZEROS + 3, ONES + 1
        file["linked"], file["elsewhere"] = h5py.SoftLink("/train"), h5py.ExternalLink("no.h5", "/")
    (shard,) = find_shards([path], keys)
    ((mean, logvar),) = shard.blocks()
    np.testing.assert_array_equal(mean, ZEROS + 3)
    np.testing.assert_allclose(logvar, np.log(ONES + 1), rtol=1e-6)
    names = "among 'elsewhere', 'linked', 'train', 'train/mean', 'train/var': name it"
    with pytest.raises(PosteriorFileError, match=f"no mean, .* {names}"):
        find_shards([path])


def group_of(kind):
    def write(file):
        file["mean"] = ZEROS
        file.create_group("var").attrs["encoding-type"] = kind

    return write


def outer_link(file):
    file["mean"] = ZEROS
    file["var"] = h5py.ExternalLink("other.h5", "var")


def inner_link(file):
    file["others"], file["mean"] = ONES, ZEROS
    file["var"] = h5py.SoftLink("/others")


def virtual(file):
    layout = h5py.VirtualLayout((4, 2), float)
    layout[:] = h5py.VirtualSource("other.h5", "var", (4, 2))
    file["mean"] = ZEROS
    file.create_virtual_dataset("var", layout)


def external(file):
    file["mean"] = ZEROS
    file.create_dataset("var", (4, 2), float, external=[("other.bin", 0, 64)])


def many_rows_in_a_chunk(file):
    for name in ("mean", "var"):
        file.create_dataset(name, (1 << 22, 40), "f4", chunks=(1 << 22, 1))


def empty(file):
    file["mean"], file["var"] = ZEROS, h5py.Empty("f4")


def written_in_part(rows, **options):
    def write(file):
        file["mean"] = ZEROS
        data = file.create_dataset("var", ZEROS.shape, "f4", **options)
        if rows:
            data[:rows] = 1

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (group_of("dataframe"), r"'var' must be an array, got a dataframe: replace it by .to_numpy\(\)"),
        (group_of("csr_matrix"), "'var' must be an array, got a csr_matrix: replace it by"),
        (lambda file: file.update(obsm=ZEROS, mean=ZEROS, var=ONES), "'obsm' must be a group of arrays"),
        (outer_link, "'var' is a link, which is not followed"),
        (inner_link, "'var' is a link, which is not followed"),
        (virtual, "'var' has its data in other files"),
        (external, "'var' has its data in other files"),
        (empty, "'var' must be an array, got an empty data set"),
        (written_in_part(0), "'var' is incomplete: not all of its numbers were written"),
        (written_in_part(3, chunks=(3, 2)), "'var' is incomplete: not all of its numbers were written"),
        (many_rows_in_a_chunk, "'mean' has chunks of 4194304 rows, which take 671088640 bytes"),
        (lambda file: file.update(mean=ZEROS.astype(">f8"), var=ONES), "'mean' must be of one of .* got >f8"),
        (lambda file: file.update(mean=[["a", "b"]], var=ONES), "'mean' must be of one of .* got object"),
    ],
)
def test_data_sets_that_are_refused(tmp_path, write, message):
    """What lies in other files stays there, which would hold what is looked for."""
    of_anndata(tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file["var"] = ONES
    ONES.tofile(tmp_path / "other.bin")
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        write(file)
    with pytest.raises(PosteriorFileError, match=rf"x.h5ad: {message}"):
        list(find_shards([tmp_path / "x.h5ad"])[0].blocks())


def columns(mean, **others):
    return {"mean": mean, "std_0": [1.0] * 4, "std_1": [1.0] * 4, **others}


NUMBERS = [[0.0, 1.0]] * 4
TABLES = {
    "'mean' must have no missing values, got null in row 1": columns([NUMBERS[0], None, *NUMBERS[2:]]),
    "'mean' must have no missing values, got null in row 3": columns([*NUMBERS[1:], [0.0, None]]),
    "'mean' must have lists of one length, got 1 numbers in row 2 and 2 in row 0": columns(
        [*NUMBERS[2:], [0.0], [0.0, 1.0]]
    ),
    "'std_1' must have no missing values, got null in row 2": {
        **columns(NUMBERS),
        "std_1": [0.0, 1.0, None, 1.0],
    },
    "'std' must have one column for each number, got std_0 to std_10 with none of 2": columns(
        NUMBERS, std_10=[1.0] * 4
    ),
    "'std' must have one column for each number, got std_0 to std_01 with two of 1": columns(
        NUMBERS, std_01=[1.0] * 4
    ),
    "'mean' must be of floating numbers, or lists of them, got int64": columns([[0, 1]] * 4),
    r"'mean' must have shape \(N, K\) with K >= 1, got \(4,\)": columns([0.0] * 4),
    "there is no mean, .* among 'std': name it": {"std_1": [1.0] * 4, "std_2": [1.0] * 4},
}


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("message", TABLES)
def test_tables_that_are_refused(tmp_path, message, suffix):
    path = tmp_path / f"x.{suffix}"
    write = pa.parquet.write_table if suffix == "parquet" else pa.feather.write_feather
    write(pa.table(TABLES[message]), path)
    with pytest.raises(PosteriorFileError, match=rf"x.{suffix}: {message}"):
        list(find_shards([path])[0].blocks())


class Unpickled:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_zarr_that_is_refused(tmp_path):
    """No codec but those of numbers: there is one that unpickles."""
    path, trace = tmp_path / "x.zarr", tmp_path / "unpickled"
    save_zarr(path, {"mean": ONES, "var": ONES})
    metadata = json.loads((path / "var" / ".zarray").read_text())
    (path / "var" / ".zarray").write_text(json.dumps({**metadata, "compressor": {"id": "pickle"}}))
    (path / "var" / "0.0").write_bytes(pickle.dumps(Unpickled(trace)))
    with pytest.raises(PosteriorFileError, match=r"x.zarr: 'var' is encoded by 'pickle', which is not read"):
        find_shards([path])
    assert not trace.exists()
    (path / "var" / ".zarray").rename(path / "var" / ".zgroup")
    with pytest.raises(PosteriorFileError, match=r"x.zarr: 'var' must be an array, got a group"):
        find_shards([path])
    (path / "var" / ".zgroup").write_text("{")
    (path / "var" / ".zgroup").rename(path / "var" / ".zarray")
    with pytest.raises(PosteriorFileError, match="zarray is damaged"):
        find_shards([path])


@pytest.mark.parametrize("zarr_format", [2, 3] if IS_ZARR_3 else [2])
def test_chunks_that_are_missing_or_cut_off(tmp_path, zarr_format):
    """zarr gives zeros for what is missing."""
    path = tmp_path / "x.zarr"
    pytest.importorskip("zarr")
    blosc = {"compressor": zarr.Blosc()} if not IS_ZARR_3 else {}
    if zarr_format == 3:
        blosc = {"compressors": zarr.codecs.BloscCodec()}
    save_zarr(path, draw(2500, 3), zarr_format, **blosc)
    middle = path / "qz_m" / ("1.0" if zarr_format == 2 else "c/1/0")
    content = middle.read_bytes()
    for length in (0, 15):
        middle.write_bytes(content[:length])
        with pytest.raises(PosteriorFileError, match=r"x.zarr: 'qz_m' is damaged: .*1.0 is truncated"):
            find_shards([path])
    middle.unlink()
    with pytest.raises(PosteriorFileError, match=r"x.zarr: 'qz_m' is incomplete: 1 of 3 chunks are missing"):
        find_shards([path])
    middle.write_bytes(content)
    assert find_shards([path])[0].num_samples == 2500


def test_links_in_a_store_that_are_not_followed(tmp_path):
    """What is behind them may change, and the results that were kept be those of before."""
    save_zarr(tmp_path / "x.zarr", draw(50, 3))
    (tmp_path / "x.zarr" / "qz_m").rename(tmp_path / "elsewhere")
    (tmp_path / "x.zarr" / "qz_m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PosteriorFileError, match=r"x.zarr/qz_m is a link to a folder, which is not followed"):
        find_shards([tmp_path / "x.zarr"])


def test_a_zarr_store_is_one_shard(tmp_path):
    arrays = draw(50, 3)
    save_zarr(tmp_path / "a.zarr", arrays)
    save_zarr(tmp_path / "b.zarr" / "inner", arrays)
    np.savez(tmp_path / "c.npz", **arrays)
    folder = [tmp_path / name for name in ("a.zarr", "c.npz")]
    assert [shard.name for shard in find_shards([*folder, tmp_path / "b.zarr" / "inner"])] == [
        *map(str, (tmp_path / "a.zarr", tmp_path / "b.zarr" / "inner", tmp_path / "c.npz"))
    ]
    with pytest.raises(PosteriorFileError, match=r"b.zarr: .*inner"):
        find_shards([tmp_path])
    (tmp_path / "b.zarr").rename(tmp_path / "b")
    assert [shard.name for shard in find_shards([tmp_path])] == list(map(str, folder))


def test_a_store_that_was_changed_is_read_anew(tmp_path):
    """Even where its size and the time of the folder are as they were."""
    arrays = draw(50, 3)
    save_zarr(tmp_path / "x.zarr", arrays)
    results = ShardResults(tmp_path / "results", [0.01])
    (shard,) = find_shards([tmp_path / "x.zarr"])
    scan([shard], [0.01], results)
    (chunk,) = (tmp_path / "x.zarr" / "qz_m").glob("0*")
    assert results.has(find_shards([tmp_path / "x.zarr"])[0])
    content = chunk.read_bytes()
    reading = shard.blocks()
    next(reading)
    chunk.write_bytes(content)
    assert not results.has(find_shards([tmp_path / "x.zarr"])[0])
    with pytest.raises(PosteriorFileError, match=r"x.zarr was changed while it was read"):
        list(reading)


@pytest.mark.parametrize(
    ("library", "name"), [("h5py", "x.h5ad"), ("pyarrow", "x.parquet"), ("zarr", "x.zarr")]
)
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, library, name):
    WRITERS[{"x.h5ad": "h5", "x.parquet": "parquet, wide", "x.zarr": "zarr 2"}[name]][1](
        tmp_path / name, draw(5, 3)
    )
    for module in [module for module in sys.modules if module.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(PosteriorFileError, match=rf"{name}: {library}.* installed.*'lineavae\[formats\]'"):
        find_shards([tmp_path / name])


@pytest.mark.parametrize("offset", [-5, 10**6, 2**31 - 1])
def test_lists_that_reach_out_of_a_file(tmp_path, offset):
    """The length of the lists is that of the first, which is looked at only where it lies in the file."""
    arrays = pa.table({"mean": list(np.ones((8, 3))), "logvar": list(np.ones((8, 3)))})
    with pa.ipc.new_stream(tmp_path / "x.arrow", arrays.schema) as stream:
        stream.write_table(arrays)
    content, offsets = (tmp_path / "x.arrow").read_bytes(), np.arange(0, 27, 3, dtype=np.int32)
    assert content.count(offsets.tobytes()) == 2
    damaged = offsets.copy()
    damaged[1] = offset
    (tmp_path / "x.arrow").write_bytes(content.replace(offsets.tobytes(), damaged.tobytes(), 1))
    with pytest.raises(PosteriorFileError, match=r"x\.arrow is damaged: Offset invariant failure"):
        find_shards([tmp_path])
