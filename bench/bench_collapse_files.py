"""Collapse statistics of a posterior on disk, against reading it alone and computing in memory alone.

Cold times include that of dropping the file from the page cache, on both sides.
"""

import os

import pytest
import torch
from safetensors.torch import save_file

from harness.measure import Contender
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
    )
