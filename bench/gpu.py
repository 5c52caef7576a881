"""Build, test and measure on a machine with a GPU, within eight minutes, and write down what came of it.

Works without a network; what is not installed is named and skipped. After every step results.json and
README.md in bench/results/<gpu> say how far it came. Exit status 1: a step failed. Started by bench/gpu.sh.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shlex
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from harness import machine, report
from harness.steps import Step, is_installed, run_steps

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 470  # seconds: eight minutes, less the start and the end

# Everything is built here; the package's own folder stays as it is.
BUILD = "build/gpu"
BENCHMARKS = f"{BUILD}/benchmarks.json"

# Without one of these the test files that import it are left out.
TEST_MODULES = ("hypothesis", "matplotlib", "mlxtend", "mpmath")
OTHER_MODULES = ("pip", "pybind11", "pytest", "pytest_benchmark", "scikit_build_core", "triton")

# The package's writer of whole files, loaded by itself: the package is yet to be built.
write_text = runpy.run_path(str(ROOT / "python/lineavae/_io.py"))["write_text"]


def list_steps(architecture: str, setting: str) -> list[Step]:
    """List what is done, in this order; what may not fit comes last."""
    python = shlex.quote(Path(sys.executable).name)  # its folder comes first on the PATH
    compilers = ("cmake", "ninja", "nvcc")
    programs = [path.stem for path in sorted((ROOT / "tests/cuda_emulator/kernels").glob("*.cu"))]
    emulated = " ".join(f"{program}_plain" for program in programs)
    site, by_pip = f"$PWD/{BUILD}/site", f"$PWD/{BUILD}/pip"

    def python_with(folder: str) -> str:
        return f"PYTHONPATH={folder}${{PYTHONPATH:+:$PYTHONPATH}} {python}"

    def import_from(folder: str) -> str:
        # an editable installation would come first
        return f'{python_with(folder)} bench/imported_from.py "{folder}"'

    return [
        Step(
            "build",
            f"CUDAARCHS={architecture} cmake -G Ninja -S . -B {BUILD}/cmake -DLINEAVAE_CUDA=ON"
            f" -DPython_EXECUTABLE=$(command -v {python}) && ninja -C {BUILD}/cmake"
            f" && rm -rf {BUILD}/site && mkdir {BUILD}/site && cp -r python/lineavae {BUILD}/site"
            f" && cmake --install {BUILD}/cmake --prefix {BUILD}/site && {import_from(site)}",
            expected=60,
            programs=compilers,
        ),
        Step(
            "programs",
            f"CUDAARCHS={architecture} cmake -G Ninja -S tests/cuda_emulator -B build/cuda_programs"
            " -DLINEAVAE_ON_GPU=ON && ninja -C build/cuda_programs",
            expected=30,
            programs=compilers,
        ),
        Step(
            "emulated programs",
            "cmake -G Ninja -S tests/cuda_emulator -B build/cuda_emulator"
            f" -DPython_EXECUTABLE=$(command -v {python})"
            f" && ninja -C build/cuda_emulator {emulated}",
            expected=30,
            programs=("cmake", "ninja"),
        ),
        *(
            Step(
                f"{program}: GPU and emulator agree",
                f"build/cuda_programs/{program}_gpu --record {BUILD}/{program}.gpu"
                f" && build/cuda_emulator/{program}_plain --record {BUILD}/{program}.emulated"
                f" && {python} tests/cuda_emulator/compare.py {BUILD}/{program}.emulated"
                f" {BUILD}/{program}.gpu",
                expected=10,
                after=("programs", "emulated programs"),
            )
            for program in programs
        ),
        Step(
            "benchmarks",
            f"LINEAVAE_BENCH_OUT={BENCHMARKS} {python if setting == 'dry-run' else python_with(site)}"
            f" -m pytest -c bench/pytest.ini{without_plugin()} -rs --setting {setting} bench",
            expected=90,
            after=("build",),
            modules=("pytest",),
            in_dry_run=True,
        ),
        *(
            Step(
                f"{program}: {tool}",
                f"compute-sanitizer --tool {tool} --error-exitcode 1 build/cuda_programs/{program}_gpu",
                expected=8,
                after=("programs",),
                programs=("compute-sanitizer",),
            )
            for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
            for program in programs
        ),
        Step(
            "tests",
            # those of the emulator and of the kernels' budgets need no GPU
            f"LINEAVAE_REQUIRE_CUDA=1 {python_with(site)} -m pytest{without_plugin()}{without_files()}"
            ' -rfEs -m "not slow" -k "cuda and not emulat and not budget"',
            expected=100,
            after=("build",),
            modules=("pytest",),
        ),
        Step(
            "installation by pip",
            f"rm -rf {BUILD}/pip && CUDAARCHS={architecture} LINEAVAE_CUDA=ON {python} -m pip install"
            " --no-index --no-build-isolation --no-deps"
            f" --config-settings=build-dir={BUILD}/pip-cmake --target {BUILD}/pip ."
            f" && {import_from(by_pip)}",
            expected=60,
            programs=compilers,
            modules=("pip", "scikit_build_core"),
        ),
    ]


def without_plugin() -> str:
    """Leave out the settings that are pytest-benchmark's where it is not installed."""
    return "" if is_installed("pytest_benchmark") else " -o addopts="


def without_files() -> str:
    """Leave out the test files that import what is not installed."""
    missing = [module for module in TEST_MODULES if not is_installed(module)]
    imports = re.compile(rf"^\s*(import|from) ({'|'.join(missing)})\b", re.MULTILINE)
    files = sorted((ROOT / "tests").rglob("test_*.py")) if missing else []
    return "".join(
        f" --ignore={path.relative_to(ROOT)}"
        for path in files
        if imports.search(path.read_text(encoding="utf-8"))
    )


def extend_path() -> None:
    """Put this Python's folder first, and last those of CUDA and of programs that came as Python packages."""
    toolkits = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [Path(toolkit) / "bin" for toolkit in (*toolkits, "/usr/local/cuda")]
    for entry in map(Path, sys.path):
        folders += [entry / "bin", *entry.glob("nvidia/*/bin")]
    folders = [Path(sys.executable).parent, os.environ["PATH"], *filter(Path.is_dir, folders)]
    os.environ["PATH"] = os.pathsep.join(map(str, folders))


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would run, and measure small sizes on the CPU"
    )
    parser.add_argument("--out", type=Path, help="folder of the results, instead of bench/results/<gpu>")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("bench/gpu.py: torch finds no CUDA device; --dry-run needs none", file=sys.stderr)
        return 2

    extend_path()
    described = machine.describe()
    if options.dry_run:
        out = options.out or Path(tempfile.mkdtemp(prefix="lineavae-gpu-"))
        steps = list_steps(architecture="native", setting="dry-run")
    else:
        out = options.out or ROOT / "bench/results" / slug(described["gpu"])
        steps = list_steps(architecture=described["compute_capability"].replace(".", ""), setting="cuda")
    document: dict[str, Any] = {
        "schema": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(ROOT),
        "machine": {**described, "float32_matmul_precision": "highest"},
        "not_installed": [name for name in (*OTHER_MODULES, *TEST_MODULES) if not is_installed(name)],
    }
    measured = ROOT / BENCHMARKS
    measured.unlink(missing_ok=True)

    def write(outcomes: list[dict[str, Any]]) -> None:
        last = outcomes[-1]
        print(f"{last['status']:<8} {last['seconds']:5.1f} s  {last['name']}  {last['reason']}", flush=True)
        if last["status"] == "failed":
            print(last["log"], flush=True)
        benchmarks = (
            json.loads(measured.read_text(encoding="utf-8"))["benchmarks"] if measured.exists() else []
        )
        document.update(steps=outcomes, ceilings=report.ceilings(benchmarks), benchmarks=benchmarks)
        write_text(out / "results.json", json.dumps(document, indent=1) + "\n")
        write_text(out / "README.md", report.page(document) + "\n")

    outcomes = run_steps(
        steps,
        root=ROOT,
        log_folder=ROOT / BUILD / "logs",
        budget=BUDGET,
        dry_run=options.dry_run,
        report=write,
    )
    print(report.benchmark_table(document["benchmarks"]))
    print(f"written: {out}/README.md, {out}/results.json")
    return 1 if any(outcome["status"] == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
