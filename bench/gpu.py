"""Build, prove and measure on a machine with a GPU, within nine minutes, and write down what came of it.

Works without a network; what is not installed is named and skipped. After every step results.json and
README.md in bench/results/<gpu> say how far it came. One call can prove and the next measure: --only proofs,
--only figures; what an earlier call found of the same sources stays. A call of its own, --experiments, trains
what fits eight minutes of the paper's Table 2, and leaves table-2.html beside. Exit status 1: a step failed.
Started by bench/gpu.sh.
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
from harness.steps import Step, choose, expected_seconds, find_problems, is_installed, run_steps

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 540  # seconds

# Everything is built here, in folders that later calls use again; the package's own folder stays as it is.
BUILD = "build/gpu"
PROGRAMS = "build/cuda_programs"
EMULATED = "build/cuda_emulator"
BENCHMARKS = f"{BUILD}/benchmarks.json"
KERNELS = f"{BUILD}/kernels.json"
COUNTERS = f"{BUILD}/counters.csv"

PYTHON = shlex.quote(Path(sys.executable).name)  # its folder comes first on the PATH

# Without one of these the test files that import it are left out.
TEST_MODULES = ("hypothesis", "matplotlib", "mlxtend", "mpmath")
OTHER_MODULES = ("pybind11", "pytest", "pytest_benchmark", "triton", "xdist")

# The package's writer of whole files, loaded by itself: the package is yet to be built.
write_text = runpy.run_path(str(ROOT / "python/lineavae/_io.py"))["write_text"]


def list_steps(architecture: str, setting: str, out: Path) -> dict[str, list[Step]]:
    """List what is done, in this order: what proves the kernels, what measures them, and what uses them."""
    return {
        "proofs": list_proofs(architecture),
        "figures": list_figures(setting),
        "experiments": list_experiments(setting, out),
    }


def list_proofs(architecture: str) -> list[Step]:
    compilers = ("cmake", "ninja", "nvcc")
    programs = [path.stem for path in sorted((ROOT / "tests/cuda_emulator/kernels").glob("*.cu"))]
    emulated = " ".join(f"{program}_plain" for program in programs)
    sanitize = f"compute-sanitizer --tool $tool --error-exitcode 1 {PROGRAMS}/@_gpu"
    return [
        Step(
            "build",
            f"CUDAARCHS={architecture} cmake -G Ninja -S . -B {BUILD}/cmake -DLINEAVAE_CUDA=ON"
            f" -DPython_EXECUTABLE=$(command -v {PYTHON}) && ninja -C {BUILD}/cmake"
            f" && rm -rf {BUILD}/site && mkdir {BUILD}/site && cp -r python/lineavae {BUILD}/site"
            f" && cmake --install {BUILD}/cmake --prefix {BUILD}/site"
            # an editable installation would come first
            f' && {with_build(PYTHON)} bench/imported_from.py "$PWD/{BUILD}/site"',
            expected=75,
            programs=compilers,
        ),
        Step(
            "programs",
            f"cmake -G Ninja -S tests/cuda_emulator -B {PROGRAMS} -DLINEAVAE_ON_GPU=ON"
            f" -DCMAKE_CUDA_ARCHITECTURES={architecture} && ninja -C {PROGRAMS}",
            expected=60,
            programs=compilers,
            alongside=True,
        ),
        Step(
            "emulated",
            f"cmake -G Ninja -S tests/cuda_emulator -B {EMULATED}"
            f" -DPython_EXECUTABLE=$(command -v {PYTHON}) && ninja -C {EMULATED} {emulated}",
            expected=60,
            programs=("cmake", "ninja"),
            alongside=True,
        ),
        Step(
            "agreement",  # of GPU and emulator
            for_each(
                programs,
                "agreement",
                f"{PROGRAMS}/@_gpu --record {BUILD}/@.gpu && {EMULATED}/@_plain --record {BUILD}/@.emulated"
                f" && {PYTHON} tests/cuda_emulator/compare.py {BUILD}/@.emulated {BUILD}/@.gpu",
            ),
            expected=15,
            after=("programs", "emulated"),
        ),
        Step(
            "tests",
            # those of the emulator and of the kernels' budgets need no GPU
            f"LINEAVAE_REQUIRE_CUDA=1 {with_build(PYTHON)} -m pytest{in_parallel()}{without_plugin()}"
            f'{without_files()} -rfEs -m "not slow" -k "cuda and not emulat and not budget"',
            expected=90,
            after=("build",),
            modules=("pytest",),
        ),
        Step(
            "sanitizers",
            for_each(
                programs,
                "sanitizers",
                f"for tool in memcheck racecheck initcheck synccheck; do {sanitize} || exit; done",
            ),
            expected=45,
            after=("programs",),
            programs=("compute-sanitizer",),
            # a program that runs by itself, and no tool that takes a refusal for a finding
            probe=f"compute-sanitizer --tool synccheck {PROGRAMS}/language_gpu",
        ),
    ]


def list_figures(setting: str) -> list[Step]:
    python = PYTHON if setting == "dry-run" else with_build(PYTHON)
    ncu = f"ncu --csv --page raw --clock-control none --metrics {','.join(report.COUNTERS)}"
    return [
        Step(
            "kernels",
            f"{python} bench/kernels.py --setting {setting} --out {KERNELS}",
            expected=35,
            after=("build",),
            in_dry_run=True,
        ),
        Step(
            "counters",
            with_build(
                f"{ncu} --target-processes all --profile-from-start off"
                " --kernel-name-base demangled --kernel-name regex:lineavae"
                f" --log-file {COUNTERS} {PYTHON} bench/kernels.py --once"
            ),
            expected=45,
            after=("build", "programs"),
            programs=("ncu",),
            # it can be forbidden to read counters; then ncu says so, and prints none
            probe=f'said=$({ncu} --launch-count 1 {PROGRAMS}/language_gpu 2>&1); echo "$said"'
            """ && echo "$said" | grep -q '^"0",'""",
        ),
        Step(
            "benchmarks",
            f"LINEAVAE_BENCH_OUT={BENCHMARKS} {python} -m pytest -c bench/pytest.ini{without_plugin()} -rs"
            f" --setting {setting} bench",
            expected=230,
            after=("build",),
            modules=("pytest",),
            in_dry_run=True,
        ),
    ]


def list_experiments(setting: str, out: Path) -> list[Step]:
    seconds = 2 if setting == "dry-run" else 400
    return [
        Step(
            "table-2",
            with_build(
                f"{PYTHON} bench/table_2.py --setting {setting} --seconds {seconds} --runs {BUILD}/runs"
                f" --out {shlex.quote(str(out.resolve() / 'table-2.html'))}"
            ),
            expected=450,
            after=("build",),
            modules=("jinja2", "matplotlib", "mlxtend"),
        )
    ]


def with_build(command: str) -> str:
    """Let Python import what was built."""
    return f"PYTHONPATH=$PWD/{BUILD}/site${{PYTHONPATH:+:$PYTHONPATH}} {command}"


def for_each(names: list[str], step: str, command: str) -> str:
    """Run a command for each name, in it @, eight at once, each with a log; it has no single quotes."""
    log = f"{BUILD}/logs/{step}-@.log"
    passes = f"({command}) >{log} 2>&1 && echo @: passed"
    return (
        f"printf '%s\\n' {' '.join(names)} | xargs -P 8 -I @"
        f" sh -c '{passes} || {{ tail -n 12 {log}; echo @: failed; exit 1; }}' && echo {len(names)} passed"
    )


def in_parallel() -> str:
    return " -n 8 --dist worksteal" if is_installed("xdist") else ""


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


def read_figures() -> dict[str, Any]:
    """Read what the steps that ran have measured."""
    figures: dict[str, Any] = {}
    if (ROOT / BENCHMARKS).exists():
        figures["benchmarks"] = json.loads((ROOT / BENCHMARKS).read_text(encoding="utf-8"))["benchmarks"]
        figures["ceilings"] = report.ceilings(figures["benchmarks"])
    if (ROOT / KERNELS).exists():
        figures["kernels"] = json.loads((ROOT / KERNELS).read_text(encoding="utf-8"))
    if (ROOT / COUNTERS).exists():
        figures["counters"] = report.read_counters(ROOT / COUNTERS)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would run, and measure small sizes on the CPU"
    )
    parser.add_argument("--out", type=Path, help="folder of the results, instead of bench/results/<gpu>")
    parser.add_argument(
        "--only",
        nargs="+",
        default=["proofs", "figures"],
        metavar="STEP",
        help="steps to run, with what they come after: proofs, figures, experiments, or names",
    )
    parser.add_argument(
        "--experiments",
        action="store_const",
        const=["experiments"],
        dest="only",
        help="as --only experiments",
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds to stay within, {BUDGET}")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        print("bench/gpu.py: torch finds no CUDA device; --dry-run needs none", file=sys.stderr)
        return 2

    extend_path()
    described = machine.describe()
    if options.dry_run:
        out = options.out or Path(tempfile.mkdtemp(prefix="lineavae-gpu-"))
        architecture, setting = "native", "dry-run"
    else:
        out = options.out or ROOT / "bench/results" / slug(described["gpu"])
        architecture, setting = described["compute_capability"].replace(".", ""), "cuda"
    groups = list_steps(architecture, setting, out)
    plan = [step for group in groups.values() for step in group]
    words = {name: [step.name for step in group] for name, group in groups.items()}
    words |= {step.name: [step.name] for step in plan}
    if unknown := sorted(set(options.only) - set(words)):
        parser.error(f"--only: no step is called {', '.join(unknown)}; there are {', '.join(words)}")
    steps = choose(plan, [name for word in options.only for name in words[word]])
    seconds = expected_seconds(steps)
    print(f"{len(steps)} steps, expected to take {seconds:.0f} s of {options.budget:.0f} s", flush=True)
    if options.dry_run and (problems := find_problems(steps, options.budget)):
        print("\n".join(problems), file=sys.stderr)
        return 1

    sources = machine.digest_of_sources(ROOT)
    document: dict[str, Any] = {"steps": [], "benchmarks": [], "ceilings": {}, "kernels": {}, "counters": []}
    if (out / "results.json").exists():
        earlier = json.loads((out / "results.json").read_text(encoding="utf-8"))
        if earlier.get("sources") == sources:
            document.update({key: earlier[key] for key in document})
    found_earlier = {outcome["name"]: outcome for outcome in document["steps"]}
    document.update(
        schema=2,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=machine.commit(ROOT),
        sources=sources,
        machine={**described, "float32_matmul_precision": "highest"},
        not_installed=[name for name in (*OTHER_MODULES, *TEST_MODULES) if not is_installed(name)],
    )
    for figures in (BENCHMARKS, KERNELS, COUNTERS):
        (ROOT / figures).unlink(missing_ok=True)

    def write(outcomes: list[dict[str, Any]]) -> None:
        last = outcomes[-1]
        print(f"{last['status']:<8} {last['seconds']:5.1f} s  {last['name']}  {last['reason']}", flush=True)
        if last["status"] == "failed":
            print(last["log"], flush=True)
        known = found_earlier | {outcome["name"]: outcome for outcome in outcomes}
        document.update(steps=[known[step.name] for step in plan if step.name in known], **read_figures())
        write_text(out / "results.json", json.dumps(document, indent=1) + "\n")
        write_text(out / "README.md", report.page(document) + "\n")

    outcomes = run_steps(
        steps,
        root=ROOT,
        log_folder=ROOT / BUILD / "logs",
        budget=options.budget,
        dry_run=options.dry_run,
        report=write,
    )
    if document["benchmarks"]:
        print(report.benchmark_table(document["benchmarks"]))
    print(f"written: {out}/README.md, {out}/results.json")
    return 1 if any(outcome["status"] == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
