"""Where benchmarks run, and what becomes of their results; harness/measure.py is how they are timed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

# read when OpenMP starts: threads that spin at a barrier slow each other down tenfold where cores are shared
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import lineavae
from harness import guard, machine, measure, peers, report
from harness.setting import Setting
from lineavae import _ext, _io

RESULTS: list[dict[str, Any]] = []
REGRESSIONS: list[guard.Regression] = []


def has_cuda() -> bool:
    return torch.cuda.is_available() and _ext.has_kernel("gaussian_kl", "cuda")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--setting",
        choices=["1-thread", "2-threads", "cuda", "dry-run"],
        help="where to run; with one thread, two and, where it is to be had, on CUDA unless given; "
        "dry-run is small, for the benchmarks' own sake",
    )
    parser.addoption(
        "--against", type=Path, help="results of an earlier run: fail where ours lost against a contender"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        only = metafunc.config.getoption("--setting")
        settings = [only] if only else ["1-thread", "2-threads", *(["cuda"] if has_cuda() else [])]
        metafunc.parametrize("setting", settings, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as of another device or number of threads; a dry run has everything."""
    others = {
        "cuda": {"only_cpu", "only_1_thread"},
        "1-thread": {"only_cuda"},
        "2-threads": {"only_cuda", "only_1_thread"},
        "dry-run": set(),
    }
    left_out = [
        item
        for item in items
        if isinstance(item, pytest.Function)
        and others[item.callspec.params["setting"]] & {marker.name for marker in item.iter_markers()}
    ]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> Iterator[Setting]:
    torch.compiler.reset()  # or one benchmark's compilations count as recompilations in the next
    if request.param == "cuda" and not has_cuda():
        pytest.fail("no CUDA device, or a native module built without CUDA")
    before = torch.get_num_threads()
    threads = None
    if request.param.endswith(("-thread", "-threads")):
        threads = int(request.param.partition("-")[0])
        torch.set_num_threads(threads)
    with threadpool_limits(threads):  # those of NumPy and of scikit-learn, too
        yield Setting.named(request.param)
    torch.set_num_threads(before)


@pytest.fixture
def compare(request: pytest.FixtureRequest, setting: Setting) -> Callable[..., None]:
    """Time contenders in turn and keep the results; on a CPU pytest-benchmark, if there, reports ours too."""

    def run(
        contenders: dict[str, measure.Contender],
        rounds: int = 15,
        timer: measure.Timer | None = None,
        at: int | None = None,
    ) -> None:
        """Compare by the setting's timer, unless another is given, at a size where a test has several."""
        rounds = 3 if setting.dry else rounds
        results = measure.compare(contenders, timer or setting.timer, rounds)
        where = request.node.callspec.params["setting"]
        name = request.node.name if at is None else f"{request.node.name} at {at}"
        RESULTS.append({"name": name, "setting": where, "contenders": results})
        if out := os.environ.get("LINEAVAE_BENCH_OUT"):
            described = {**machine.describe(), "lineavae": lineavae.__version__}
            document = {"machine": described, "benchmarks": RESULTS}
            _io.write_text(Path(out), json.dumps(document, indent=1) + "\n")
        has_plugin = request.config.pluginmanager.hasplugin("benchmark")
        if at is None and setting.device == "cpu" and has_plugin:  # which reports once in a test
            benchmark = request.getfixturevalue("benchmark")
            benchmark.pedantic(measure.calls_of(next(iter(contenders.values())), 0)[0], rounds=rounds)

    return run


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--against")
    if path is not None:
        then = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        REGRESSIONS.extend(guard.regressions(then, RESULTS))
    if REGRESSIONS and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RESULTS:
        terminalreporter.section("ours and the others")
        terminalreporter.write_line(report.benchmark_table(RESULTS))
    if peers.MISSING:
        names = ", ".join(sorted(peers.MISSING))
        terminalreporter.write_line(f"not installed, and so left out: {names} (bench/peers.txt)")
    for found in REGRESSIONS:
        terminalreporter.write_line(
            f"{found.benchmark}: {found.contender} takes {found.now:.2f} times ours, {found.then:.2f} before"
        )
