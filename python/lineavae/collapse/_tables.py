"""The report as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lineavae.collapse._posterior import WIDE
from lineavae.collapse.verdicts import LIVE_ABOVE, NO_GAP_BELOW, CriticalGap

if TYPE_CHECKING:
    from lineavae.collapse.at import CollapseAt

_SHORT = {"collapsed": "yes", "not collapsed": "no", "undetermined": "open"}

# Of whether a latent is collapsed.
_STYLES = {"yes": "red", "open": "yellow", "no": "green"}


@dataclass(frozen=True)
class Summary:
    """What the printed report says."""

    at: CollapseAt

    @property
    def headings(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What `numbers` and what `answers` give."""
        return ("mean KL", "critical ε"), ("collapsed", f"at {self._percent}", "active", "variable")

    @property
    def _percent(self) -> str:
        return f"{100 * self.at.level:.10g} %"

    def render(self, max_latents: int | None) -> RenderableType:
        """Tell what is broken and what is collapsed, and give latents of smallest and largest critical ε."""
        facts = Table.grid(padding=(0, 3, 0, 0))
        for label, text in self.facts():
            facts.add_row(label, text)
        return Group(*self.warnings(), self.size, facts, "", self._latents(max_latents))

    @property
    def size(self) -> str:
        """Samples and latents."""
        return f"{self.at.report.num_samples} samples, {self.at.report.latent_dim} latents"

    def warnings(self) -> list[str]:
        """Tell what is broken."""
        report = self.at.report
        broken = (
            (report.nan > 0, "have samples whose KL is NaN, which may be anything"),
            (report.infinite > 0, "have samples of infinite KL, above every ε"),
        )
        return [
            *(f"{share(mask)} {what}: latents {ranges(mask)}" for mask, what in broken if mask.any()),
            *([f"Warning: {WIDE}"] if report.is_wider_than_prior else []),
        ]

    def facts(self) -> Iterator[tuple[str, str]]:
        """Give what is known of all latents together, label and text."""
        at, report = self.at, self.at.report
        collapsed, decided = at.verdict
        yield (
            f"({at.epsilon:g}, {at.delta:g})-collapsed",
            f"{share(collapsed)}, {100 * collapsed.mean():.1f} %",
        )
        if collapsed.any():
            yield "", f"latents {ranges(collapsed)}"
        nan = report.nan > 0
        for mask, why in ((~nan, f"{at.epsilon:g} is no threshold"), (nan, "some KL is NaN")):
            if (mask & ~decided).any():
                yield "  not decided", f"latents {ranges(mask & ~decided)}: {why}"
        names, test = ("collapsed", "not collapsed", "undetermined"), at.collapse_test()
        yield (
            f"  with {self._percent} confidence",
            ", ".join(f"{(test == name).sum()} {name}" for name in names),
        )
        yield "live latents", self._live()
        yield "largest gap of critical ε", gap_in_words(at.critical_gap)
        if report.has_moments:
            yield "active units", f"{report.num_active()}, variance of the posterior mean >= 0.01"
            names, kinds = ("passive", "mixed", "active"), report.classification()
            yield "variables", ", ".join(f"{(kinds == name).sum()} {name}" for name in names)
        else:
            yield "active units, variables", "unknown: KL values were given alone"
        unknown = np.isnan(report.mean_kl)
        total = f"{report.mean_kl.sum():.5g} nats, sum over latents"
        yield "mean KL", f"unknown for latents {ranges(unknown)}" if unknown.any() else total

    def _live(self) -> str:
        live = self.at._live
        if live is None:
            return "open: no gap of critical ε is clear"
        if not live.any():
            return f"{share(live)}: no critical ε is above {NO_GAP_BELOW:g}"
        if (live | np.isnan(self.at.critical_epsilon.estimate)).all():  # no gap leaves none below
            return f"{share(live)}: no critical ε is below {LIVE_ABOVE:g}"
        return f"{share(live)}, those above the largest gap"

    def numbers(self, latent: int) -> Iterator[tuple[float, ...]]:
        """Give the numbers of a latent: one, or an interval."""
        critical = self.at.critical_epsilon
        yield (self.at.report.mean_kl[latent],)
        yield critical.lower[latent], critical.upper[latent]

    def answers(self, latent: int) -> tuple[str, str, str, str]:
        """Give what is said of a latent."""
        verdict = self.at.verdict
        test, active, kinds = self._tests
        return (
            "yes" if verdict.collapsed[latent] else "no" if verdict.decided[latent] else "open",
            _SHORT[test[latent]],
            "unknown" if active[latent] is None else "yes" if active[latent] else "no",
            kinds[latent] or "unknown",
        )

    @cached_property
    def _tests(self) -> tuple[NDArray[Any], ...]:
        return self.at.collapse_test(), *self.at._kinds

    def ends(self, max_latents: int | None) -> tuple[list[int], list[int]]:
        """Give the latents of smallest and those of largest critical ε, if some are left out."""
        order: list[int] = np.argsort(self.at.critical_epsilon.estimate, kind="stable").tolist()
        if max_latents is None or len(order) <= max_latents:
            return order, []
        return order[: (max_latents + 1) // 2], order[len(order) - max_latents // 2 :]

    def _latents(self, max_latents: int | None) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        of_numbers, of_answers = self.headings
        for heading in ("latent", *of_numbers):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in of_answers:
            # where the terminal is narrow these give way, not the numbers
            table.add_column(heading, overflow="ellipsis", min_width=4 if heading == "collapsed" else None)
        first, last = self.ends(max_latents)
        hidden = self.at.report.latent_dim - len(first) - len(last)
        for group in (first, last):
            for latent in group:
                numbers = (interval(f"{number:.3g}" for number in some) for some in self.numbers(latent))
                *verdicts, active, kind = self.answers(latent)
                coloured = (Text(verdict, _STYLES[verdict]) for verdict in verdicts)
                table.add_row(str(latent), *numbers, *coloured, active, kind)
            if hidden and group is first:
                table.add_row("...", f"{hidden} more")
        return table


def interval(ends: Iterable[str]) -> str:
    """Write an interval as it is printed, as one number where its ends are printed the same."""
    return " to ".join(dict.fromkeys(ends))


def gap_in_words(gap: CriticalGap | None) -> str:
    """Say what the largest gap of critical ε tells."""
    if gap is None:
        return "none"
    sides = f"{gap.num_below} below {gap.lower:.3g}, {gap.num_above} above {gap.upper:.3g}"
    if gap.is_clear:
        return f"{sides}: no ε between changes the answer"
    return f"none is clear: {sides}"


def share(mask: NDArray[np.bool_]) -> str:
    """Say how many latents are in the mask: ``3 of 200 latents``."""
    return f"{mask.sum()} of {len(mask)} latents"


def ranges(mask: NDArray[np.bool_]) -> str:
    """Name the latents in the mask: ``0, 3-7, 9``."""
    padded = np.concatenate([[False], mask, [False]]).astype(np.int8)
    starts, ends = (np.flatnonzero(np.diff(padded) == step) for step in (1, -1))
    return ", ".join(
        f"{start}" if end - start == 1 else f"{start}-{end - 1}"
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )
