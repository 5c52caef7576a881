"""The CUDA sources compile for the architectures that matter, and no kernel spills registers."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/ops/cuda").glob("*.cu"))
TARGETS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"]


def compile_verbosely(source: Path, out: Path) -> str:
    command = ["nvcc", "-std=c++17", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-c", str(source), "-o", str(out)]
    for target in TARGETS:
        command += ["-gencode", target]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_no_kernel_spills(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        logs = list(
            pool.map(lambda source: compile_verbosely(source, tmp_path / f"{source.stem}.o"), SOURCES)
        )
    for source, log in zip(SOURCES, logs, strict=True):
        usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
        assert usage, f"ptxas reported nothing for {source.name}"
        assert all(kernel == ("0", "0", "0") for kernel in usage), f"{source.name} spills:\n{log}"


def test_kernels_keep_to_the_shared_vocabulary() -> None:
    # The wrappers of common/cuda.cuh are what lets a kernel file run on a CPU in tests.
    for path in (ROOT / "csrc/ops/cuda").glob("*.cuh"):
        text = path.read_text(encoding="utf-8")
        assert "<<<" not in text, f"{path.name} launches without cuda::launch"
        assert "__shared__" not in text, f"{path.name} declares shared memory without LINEAVAE_SHARED"
        assert "atomicAdd" not in text, f"{path.name} adds atomically: the sum's order would not be fixed"
