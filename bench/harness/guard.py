"""What a change made slower: ratios of one run beside those of another, never times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness.report import ours_beside

# Part by which a ratio may fall, beside what either run scattered.
SLACK = 0.2


class Ratio(NamedTuple):
    """How many times as long as ours another takes, and by which part that is uncertain."""

    value: float
    spread: float


class Regression(NamedTuple):
    """A ratio that fell."""

    benchmark: str
    contender: str
    then: float
    now: float


def ratios(benchmarks: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Ratio]:
    """Give the ratios of all contenders, by benchmark and name."""
    found = {}
    for benchmark in benchmarks:
        contenders = benchmark["contenders"]
        for name, result in contenders.items():
            ours = ours_beside(name, contenders)
            if ours is result or "error" in result or "milliseconds" not in ours:
                continue
            spread = sum(each["iqr_milliseconds"] / each["milliseconds"] for each in (ours, result))
            ratio = Ratio(result["milliseconds"] / ours["milliseconds"], spread)
            found[benchmark["name"], name] = ratio
    return found


def regressions(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[Regression]:
    """Name what both runs measured, and where ours lost more than the slack and the scatter of both."""
    before, found = ratios(then), []
    for key, ratio in ratios(now).items():
        if key not in before:
            continue
        least = before[key].value / (1 + SLACK + before[key].spread + ratio.spread)
        if ratio.value < least:
            found.append(Regression(*key, before[key].value, ratio.value))
    return found
