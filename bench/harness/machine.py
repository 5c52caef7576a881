"""The machine that figures belong to."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def describe() -> dict[str, object]:
    """Name processor, GPU and versions; None is what there is not."""
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties() if cuda else None
    return {
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "gpu": properties.name if cuda else None,
        "compute_capability": f"{properties.major}.{properties.minor}" if cuda else None,
        "multiprocessors": properties.multi_processor_count if cuda else None,
        "l2_bytes": properties.L2_cache_size if cuda else None,
        "memory_bytes": properties.total_memory if cuda else None,
        "driver": _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader,nounits"),
        "cuda": torch.version.cuda,
        "nvcc": _nvcc_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit(root: Path) -> str:
    """Name the commit of the sources, with "-dirty" where files differ from it; "unknown" without history."""
    return _output_of("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40") or "unknown"


def digest_of_sources(root: Path) -> str:
    """Name the sources by what they hold, whatever became of the commit: results of the same go together."""
    digest = hashlib.sha256()
    for folder in ("bench", "cmake", "csrc", "python", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".cmake", ".cpp", ".cu", ".cuh", ".h", ".in", ".py", ".txt"}:
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def watched_gpu() -> Iterator[dict[str, list[float]]]:
    """Sample clocks, power and temperature; at the end: least, median and most of each."""
    queries = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"]
    found: dict[str, list[float]] = {}
    if shutil.which("nvidia-smi") is None or not torch.cuda.is_available():
        yield found
        return
    gpu = f"--id=GPU-{torch.cuda.get_device_properties().uuid}"
    query = f"--query-gpu={','.join(queries)}"
    process = subprocess.Popen(
        ["nvidia-smi", gpu, query, "--format=csv,noheader,nounits", "--loop-ms=200"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield found
    finally:
        process.terminate()
        lines = process.communicate()[0].splitlines()
        samples = [line.split(", ") for line in lines if re.fullmatch(r"[\d.]+(, [\d.]+){3}", line)]
        for name, column in zip(queries, zip(*samples, strict=True), strict=False):
            values = [float(value) for value in column]
            found[name] = [min(values), statistics.median(values), max(values)]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _nvcc_version() -> str | None:
    release = re.search(r"V(\d+\.\d+\.\d+)", _output_of("nvcc", "--version") or "")
    return release[1] if release else None


def _output_of(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
