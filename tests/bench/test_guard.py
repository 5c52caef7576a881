"""Regressions, against arithmetic by hand."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from harness import guard
from harness.measure import GRAPH, PROCESS

COMMITTED = sorted((Path(__file__).parents[2] / "bench/results").glob("*.json"))


def timing(milliseconds, iqr=0.0):
    return {"milliseconds": milliseconds, "iqr_milliseconds": iqr}


def run(ours, eager, **others):
    return [{"name": "test_kl[1-thread]", "contenders": {"ours": ours, "eager": eager, **others}}]


THEN = run(timing(2.0), timing(10.0))


@pytest.mark.parametrize(
    ("ours", "eager", "regresses"),
    [
        (timing(2.0), timing(10.0), False),
        (timing(20.0), timing(100.0), False),  # a slower machine
        (timing(2.0), timing(8.4), False),  # 5 / 1.2 = 4.17
        (timing(2.0), timing(8.2), True),
        (timing(2.5), timing(10.0), True),
        (timing(2.5, iqr=0.25), timing(10.0), False),  # 5 / 1.3 = 3.85
        (timing(2.5, iqr=0.25), timing(9.4), True),
        (timing(1.0), timing(10.0), False),
    ],
)
def test_a_ratio_that_falls_by_more_than_slack_and_scatter(ours, eager, regresses):
    found = guard.regressions(THEN, run(ours, eager))
    expected = guard.Regression(
        "test_kl[1-thread]", "eager", 5.0, eager["milliseconds"] / ours["milliseconds"]
    )
    assert found == ([expected] if regresses else [])


def test_graphs_are_held_against_ours_in_a_graph():
    graphs = {"ours" + GRAPH: timing(1.0), "eager" + GRAPH: timing(3.0), "compiled": {"error": "none"}}
    assert guard.ratios(run(timing(2.0), timing(10.0), **graphs)) == {
        ("test_kl[1-thread]", "eager"): (5.0, 0.0),
        ("test_kl[1-thread]", "eager" + GRAPH): (3.0, 0.0),
    }


def test_processes_are_held_against_ours_as_a_process():
    processes = {"ours" + PROCESS: timing(4.0), "eager" + PROCESS: timing(6.0)}
    assert guard.ratios(run(timing(2.0), timing(10.0), **processes)) == {
        ("test_kl[1-thread]", "eager"): (5.0, 0.0),
        ("test_kl[1-thread]", "eager" + PROCESS): (1.5, 0.0),
    }


def test_what_only_one_run_has_is_left_out():
    other = [{**THEN[0], "name": "test_elbo"}]
    assert guard.regressions(THEN, other) == []
    assert guard.regressions(THEN, [{"name": "test_kl[1-thread]", "contenders": {"copy": timing(1.0)}}]) == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_results_that_are_committed_have_ratios(path):
    benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    assert len(guard.ratios(benchmarks)) > 100
    assert guard.regressions(benchmarks, benchmarks) == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_benchmark_that_is_committed_is_guarded(path):
    then = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    now = deepcopy(then)
    for benchmark in now:
        for name in benchmark["contenders"].keys() & {"ours", "ours" + PROCESS}:
            benchmark["contenders"][name]["milliseconds"] *= 100
    compared = {each["name"] for each in then if len(each["contenders"]) > 1}
    assert {found.benchmark for found in guard.regressions(then, now)} == compared
