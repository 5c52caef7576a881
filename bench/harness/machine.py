"""The machine that figures belong to."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
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
