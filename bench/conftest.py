"""How everything here is measured.

A benchmark hands over its contenders, functions that do the same work on the same data; they run in turn,
round after round, in one process, so that whatever else the machine does falls on all of them alike. What is
reported is each contender's median and its ratio to ours. Outputs are allocated inside the timed call on
every side.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# read when OpenMP starts: threads that spin at a barrier slow each other down tenfold where cores are shared
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import lineavae

WARM_UP = 3
RESULTS: list[dict[str, object]] = []


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with this many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: object) -> Callable[..., dict[str, float]]:
    """Time contenders in turn; the one named "ours" is also what pytest-benchmark reports."""

    def run(
        contenders: dict[str, Callable[[], object]], rounds: int = 15, **facts: float
    ) -> dict[str, float]:
        for function in contenders.values():
            for _ in range(WARM_UP):
                function()
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, function in contenders.items():
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        benchmark.extra_info.update({name: seconds * 1e3 for name, seconds in medians.items()})
        benchmark.pedantic(contenders["ours"], rounds=rounds)
        RESULTS.append({"name": request.node.name, "milliseconds": medians, **facts})
        return medians

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every contender's time over ours, and write the results where LINEAVAE_BENCH_OUT says."""
    if not RESULTS:
        return
    terminalreporter.section("time of each contender / time of ours")
    for result in RESULTS:
        medians = result["milliseconds"]
        ours = medians["ours"]
        ratios = "  ".join(f"{name} {value / ours:.2f}" for name, value in medians.items() if name != "ours")
        facts = "  ".join(f"{k} {v:.3g}" for k, v in result.items() if k not in ("name", "milliseconds"))
        terminalreporter.write_line(f"{result['name']:<58} {ours * 1e3:9.3f} ms  {ratios}  {facts}")
    if out := os.environ.get("LINEAVAE_BENCH_OUT"):
        machine = {
            "cpu": cpu_name(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "lineavae": lineavae.__version__,
        }
        Path(out).write_text(
            json.dumps({"machine": machine, "results": RESULTS}, indent=1) + "\n", encoding="utf-8"
        )
