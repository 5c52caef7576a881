"""Collapse statistics of a posterior on disk, against reading it alone and computing in memory alone.

Cold times include that of dropping the file from the page cache, on both sides.
"""

import os
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import zarr
from pyarrow import feather, parquet
from safetensors.torch import save_file

from harness import peers
from harness.measure import PROCESS, Contender, CpuTimer
from lineavae._io import atomic_path
from lineavae.collapse.files import find_shards
from lineavae.collapse.scan import scan
from lineavae.ops import collapse_statistics

LATENT_DIM = 200
THRESHOLDS = [0.0, 0.001, 0.01, 0.1, 1.0]


def forget(path):
    """Drop a file, once it is written to the disk, from the page cache: the next read is from the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path, buffer):
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer.numpy()):
            pass


@pytest.mark.only_cpu
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_collapse_files(compare, setting, tmp_path, cache):
    torch.manual_seed(0)
    mean, logvar = (torch.randn(setting.size(625_000), LATENT_DIM) for _ in range(2))
    path = tmp_path / "posterior.safetensors"
    with atomic_path(path) as temporary:
        save_file({"mean": mean, "logvar": logvar}, temporary)
    shards = find_shards([path])
    buffer = torch.empty(4 << 20, dtype=torch.uint8)

    def contender(function, *inputs, on_disk=True):
        def run(*inputs):
            if on_disk and cache == "cold":
                forget(path)
            return function(*inputs)

        return Contender(run, inputs, bytes=shards[0].num_bytes)

    compare(
        {
            "ours": contender(lambda _: scan(shards, THRESHOLDS, device=setting.device), buffer),
            "read alone": contender(lambda buffer: read(path, buffer), buffer),
            "in memory": contender(
                lambda mean, logvar: collapse_statistics(mean, logvar, THRESHOLDS),
                mean.to(setting.device),
                logvar.to(setting.device),
                on_disk=False,
            ),
        },
        rounds=5,
        timer=CpuTimer() if cache == "cold" else None,  # a wait for the disk is part of it
    )


def save_h5ad(path, mean, variance, **options):
    """Write what a minified model of scvi-tools has: names and batches of cells, and no counts."""
    obs = pd.DataFrame({"batch": pd.Categorical(["a"] * len(mean))}, index=np.arange(len(mean)).astype(str))
    obsm = {"scvi_latent_qzm": mean, "scvi_latent_qzv": variance}
    anndata.AnnData(obs=obs, obsm=obsm).write_h5ad(path, **options)


def read_h5ad(path):
    obsm = anndata.read_h5ad(path).obsm
    return obsm["scvi_latent_qzm"], obsm["scvi_latent_qzv"]


def columns(*arrays):
    named = zip(("mean", "var"), arrays, strict=True)
    return [[f"{name}_{k}" for k in range(x.shape[1])] for name, x in named]


def wide(*arrays):
    named = zip(columns(*arrays), arrays, strict=True)
    return pa.table({name: x[:, k] for names, x in named for k, name in enumerate(names)})


def lists(*arrays):
    named = zip(("mean", "var"), arrays, strict=True)
    return pa.table({name: pa.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1]) for name, x in named})


def of_columns(table):
    return [column.to_numpy() for column in table.columns]


def of_lists(table):
    return [column.combine_chunks().flatten().to_numpy() for column in table.columns]


def save_zarr(path, *arrays):
    group = zarr.open_group(path, mode="w")
    for name, array in zip(("mean", "var"), arrays, strict=True):
        group.create_array(name, data=array)


def read_zarr(path):
    group = zarr.open_group(path, mode="r")
    return group["mean"][:], group["var"][:]


# How each is written, and read whole by its own library; columns of a table are left as they come.
FORMATS = {
    "h5ad": ("x.h5ad", save_h5ad, read_h5ad),
    "gzip": ("x.h5ad", lambda *args: save_h5ad(*args, compression="gzip"), read_h5ad),
    "wide": (
        "x.parquet",
        lambda path, *x: parquet.write_table(wide(*x), path),
        lambda path: of_columns(parquet.read_table(path)),
    ),
    "lists": (
        "x.parquet",
        lambda path, *x: parquet.write_table(lists(*x), path),
        lambda path: of_lists(parquet.read_table(path)),
    ),
    "feather": (
        "x.feather",
        lambda path, *x: feather.write_feather(lists(*x), path),
        lambda path: of_lists(feather.read_table(path)),
    ),
    "zarr": ("x.zarr", save_zarr, read_zarr),
}

# What users of other packages write: the mean KL of each latent, and how many are collapsed.
WITH_ANNDATA = """
import sys
import anndata, numpy as np
obsm = anndata.read_h5ad(sys.argv[1]).obsm
mean, variance = obsm["scvi_latent_qzm"], obsm["scvi_latent_qzv"]
kl = 0.5 * (mean**2 + variance - np.log(variance) - 1)
print(kl.mean(0), [((kl < epsilon).mean(0) >= 0.99).sum() for epsilon in (0, 0.001, 0.01, 0.1, 1)])
"""

WITH_NUMPY = """
import sys
import numpy as np
from pyarrow import parquet
table = parquet.read_table(sys.argv[1])
mean, variance = (
    np.stack([table[name].to_numpy() for name in table.column_names if name.startswith(kind)], 1)
    for kind in ("mean_", "var_")
)
kl = 0.5 * (mean**2 + variance - np.log(variance) - 1)
print(kl.mean(0), [((kl < epsilon).mean(0) >= 0.99).sum() for epsilon in (0, 0.001, 0.01, 0.1, 1)])
"""

WITH_POLARS = """
import sys
import polars as pl
frame = pl.scan_parquet(sys.argv[1])
found = []
for k in range(len(frame.collect_schema()) // 2):
    variance = pl.col(f"var_{k}")
    kl = 0.5 * (pl.col(f"mean_{k}") ** 2 + variance - variance.log() - 1)
    found.append(kl.mean().alias(f"kl_{k}"))
    found += [(kl < epsilon).mean().alias(f"{k}_{epsilon}") for epsilon in (0, 0.001, 0.01, 0.1, 1)]
print(frame.select(found).collect(engine="streaming"))
"""

# by kind: whose script it is, and what it needs
SCRIPTS = {
    "h5ad": {"anndata and NumPy": (WITH_ANNDATA, "anndata")},
    "wide": {"pyarrow and NumPy": (WITH_NUMPY, "pyarrow"), "polars": (WITH_POLARS, "polars")},
}


@pytest.mark.only_cpu
@pytest.mark.parametrize("kind", FORMATS)
def test_formats(compare, setting, tmp_path, kind):
    """A million cells with 30 latents, in a warm cache."""
    name, save, read_whole = FORMATS[kind]
    rng = np.random.default_rng(0)
    mean, logvar = rng.standard_normal((2, setting.size(1_000_000), 30), dtype=np.float32)
    path = tmp_path / name
    save(path, mean, np.exp(logvar))
    (shard,) = find_shards([path])

    def contender(function):
        # a tensor larger than a cache, of which no copies are made
        return Contender(lambda _: function(), [torch.empty(1 << 20)], bytes=shard.num_bytes)

    contenders = {
        "ours": contender(lambda: scan([shard], THRESHOLDS)),
        "ours, reading": contender(lambda: [None for _ in shard.blocks()]),
        "its own reading": contender(lambda: read_whole(path)),
    }
    scripts = {} if setting.dry else SCRIPTS.get(kind, {})
    commands = {name: ["-c", script] for name, (script, module) in scripts.items() if peers.has(module)}
    if commands:
        commands = {"ours": ["-m", "lineavae", "collapse"], **commands}
    for name, command in commands.items():
        call = [sys.executable, *command, str(path)]
        contenders[name + PROCESS] = contender(
            lambda call=call: subprocess.run(call, check=True, capture_output=True, env=environment())
        )
        if name != "ours":  # without the start of Python and its imports
            code = compile(command[1], name, "exec")
            contenders[name] = contender(lambda code=code: run_script(code, path))
    compare(contenders, rounds=5)


def environment():
    """Give processes as many threads as this one takes."""
    threads = str(torch.get_num_threads())
    names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"
    return {**os.environ, **dict.fromkeys(names, threads)}


def run_script(code, path):
    arguments = sys.argv
    try:
        sys.argv = ["-c", str(path)]
        with redirect_stdout(StringIO()):
            exec(code, {})
    finally:
        sys.argv = arguments
