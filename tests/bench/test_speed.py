"""The page of speed says what the benchmarks found: docs/speed.py takes it from them."""

import copy
import importlib.util
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def load():
    spec = importlib.util.spec_from_file_location("speed", ROOT / "docs/speed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


speed = load()
DOCUMENT = speed.read(speed.RESULTS)
TARGETS = speed.read(speed.TARGETS)["targets"]
BENCHMARKS = speed.contenders_by_name(DOCUMENT)
PAGE = speed.PAGE.read_text(encoding="utf-8")


def test_tables_are_of_these_results():
    found = speed.tables(DOCUMENT, TARGETS)
    assert {match[2]: match[3].strip() for match in speed.marked(PAGE)} == found


@pytest.mark.parametrize("target", TARGETS, ids=[f"{each['benchmark']} {each['name']}" for each in TARGETS])
def test_what_is_not_reached_has_a_reason(target):
    values = [value for value in speed.reached(target, BENCHMARKS) if value is not None]
    assert values
    assert all(speed.is_reached(target, value) for value in values) != bool(target.get("why"))


def test_prose():
    """The literal formulas of the KL, compiled, beside ours."""
    words = " ".join(PAGE.split())
    kl, samples = (
        speed.ratios(BENCHMARKS, name, ["compiled as written"])
        for name in ("gaussian_kl[{}-gaussian_kl-60000]", "reparameterized_kl[{}-1000-usual]")
    )
    one = f"{kl[0]:.1f}"
    sampled = f"{samples[0]:.1f}"
    assert (
        f"{one} times as long as `gaussian_kl` and {sampled} times as long as `reparameterized_kl`" in words
    )


def test_pictures_are_of_these_results():
    drawn = {
        "speed.png": speed.chart_points(BENCHMARKS),
        "scaling.png": speed.scaling_curves(BENCHMARKS),
    }
    for name, results in drawn.items():
        assert Image.open(ROOT / "docs" / name).text["Description"] == f"results {speed.checksum(results)}"


def run(ours, **others):
    return {f"step[{setting}]": {"ours": ours, **others} for setting in speed.SETTINGS}


@pytest.mark.parametrize(
    ("measure", "value", "reaches"),
    [
        # 2 ms and 6 ms: three times as fast, a third of the time; 200 flops beside 300, so twice the rate
        ("times as fast", 3.0, {3.0: True, 3.1: False}),
        ("of its time", 1 / 3, {0.34: True, 0.32: False}),
        ("of its rate", 2.0, {2.0: True, 2.1: False}),
    ],
)
def test_targets(measure, value, reaches):
    benchmarks = run({"milliseconds": 2.0, "flops": 200}, eager={"milliseconds": 6.0, "flops": 300})
    for target, expected in reaches.items():
        asked = {"benchmark": "step[{}]", "beside": ["eager"], "measure": measure, "target": target}
        assert speed.reached(asked, benchmarks) == pytest.approx([value, value])
        assert speed.is_reached(asked, value) is expected
        row = speed.targets_table(benchmarks, [{**asked, "what": "a", "name": "b", "why": "c"}])
        assert row.endswith("| yes |" if expected else "| no: c |")


def test_the_fastest_counts():
    benchmarks = run({"milliseconds": 2.0}, eager={"milliseconds": 6.0}, other={"milliseconds": 5.0})
    assert speed.ratios(benchmarks, "step[{}]", ["eager", "other"]) == [2.5, 2.5]


def test_what_was_not_measured_is_a_dash():
    benchmarks = run({"milliseconds": 2.0}, eager={"milliseconds": 6.0})
    benchmarks["other[1-thread]"] = benchmarks.pop("step[1-thread]")
    found = speed.ratios(benchmarks, "step[{}]", ["eager"])
    assert [speed.number(value) for value in found] == ["-", "3.0"]
    assert speed.ratios(benchmarks, "step[{}]", ["other"]) == [None, None]
    del benchmarks["step[2-threads]"]  # no column at all
    assert speed.ratios(benchmarks, "other[{}]", ["eager"]) == [3.0]


def test_new_results_replace_those_of_their_name():
    document = copy.deepcopy(DOCUMENT)
    first = document["benchmarks"][0]["name"]
    new = [{"name": name, "contenders": {}} for name in ("test_new", first)]
    speed.take(document, {"machine": DOCUMENT["machine"], "benchmarks": new})
    assert document["benchmarks"] == [new[1], *DOCUMENT["benchmarks"][1:], new[0]]
    with pytest.raises(ValueError, match="the new results are of an abacus"):
        speed.take(document, {"machine": {"cpu": "an abacus"}, "benchmarks": new})
