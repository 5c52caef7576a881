"""The report as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from lineavae.collapse._posterior import WIDE
from lineavae.collapse.verdicts import CriticalEpsilon, CriticalGap, Verdict

_Strings: TypeAlias = "NDArray[np.str_]"
_Bools = NDArray[np.bool_]

# What a report says of each latent.
NUMBERS = ("mean KL", "critical ε", "to")
ANSWERS = ("collapsed", "at 95 %", "active", "variable")

_SHORT = {"collapsed": "yes", "not collapsed": "no", "undetermined": "open"}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the printed report says of its latents, all arrays (K,)."""

    epsilon: float
    delta: float
    num_samples: int
    is_wider_than_prior: bool
    gap: CriticalGap | None
    nan: _Bools
    infinite: _Bools
    mean_kl: NDArray[np.float64]
    critical: CriticalEpsilon
    verdict: Verdict
    test: _Strings
    active: _Bools
    kinds: _Strings

    def render(self, max_latents: int | None) -> RenderableType:
        """Tell what is broken and what is collapsed, and give latents of the largest and smallest mean KL."""
        facts = Table.grid(padding=(0, 3, 0, 0))
        for label, text in self.facts():
            facts.add_row(label, text)
        return Group(*self.warnings(), self.size, facts, "", self._latents(max_latents))

    @property
    def size(self) -> str:
        """Samples and latents."""
        return f"{self.num_samples} samples, {len(self.mean_kl)} latents"

    def warnings(self) -> list[str]:
        """Tell what is broken."""
        broken = (
            (self.nan, "have samples whose KL is NaN, which may be anything"),
            (self.infinite, "have samples of infinite KL, above every ε"),
        )
        return [
            *(f"{share(mask)} {what}: latents {ranges(mask)}" for mask, what in broken if mask.any()),
            *([f"Warning: {WIDE}"] if self.is_wider_than_prior else []),
        ]

    def facts(self) -> Iterator[tuple[str, str]]:
        """Give what is known of all latents together, label and text."""
        verdict = self.verdict
        percent = 100 * verdict.collapsed.mean()
        yield f"({self.epsilon:g}, {self.delta:g})-collapsed", f"{share(verdict.collapsed)}, {percent:.1f} %"
        if verdict.collapsed.any():
            yield "", f"latents {ranges(verdict.collapsed)}"
        for mask, why in (
            (~self.nan, f"{self.epsilon:g} is no threshold"),
            (self.nan, "some KL is NaN"),
        ):
            if (mask & ~verdict.decided).any():
                yield "  not decided", f"latents {ranges(mask & ~verdict.decided)}: {why}"
        names = ("collapsed", "not collapsed", "undetermined")
        yield "  with 95 % confidence", ", ".join(f"{(self.test == name).sum()} {name}" for name in names)
        yield "largest gap of critical ε", _gap(self.gap)
        yield "active units", f"{self.active.sum()}, variance of the posterior mean >= 0.01"
        names = ("passive", "mixed", "active")
        yield "variables", ", ".join(f"{(self.kinds == name).sum()} {name}" for name in names)
        unknown = np.isnan(self.mean_kl)
        total = f"{self.mean_kl.sum():.5g} nats, sum over latents"
        yield "mean KL", f"unknown for latents {ranges(unknown)}" if unknown.any() else total

    def numbers(self, latent: int) -> tuple[float, float, float]:
        """Give the numbers of a latent, `NUMBERS`."""
        return self.mean_kl[latent], self.critical.lower[latent], self.critical.upper[latent]

    def answers(self, latent: int) -> tuple[str, str, str, str]:
        """Give what is said of a latent, `ANSWERS`."""
        collapsed = self.verdict.collapsed[latent]
        return (
            "yes" if collapsed else "no" if self.verdict.decided[latent] else "open",
            _SHORT[self.test[latent]],
            "yes" if self.active[latent] else "no",
            self.kinds[latent],
        )

    def ends(self, max_latents: int | None) -> tuple[list[int], list[int]]:
        """Give the latents with the largest and those with the smallest mean KL, if some are left out."""
        order: list[int] = np.argsort(-self.mean_kl, kind="stable").tolist()
        if max_latents is None or len(order) <= max_latents:
            return order, []
        return order[: (max_latents + 1) // 2], order[len(order) - max_latents // 2 :]

    def _latents(self, max_latents: int | None) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        for heading in ("latent", *NUMBERS):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ANSWERS:
            # where the terminal is narrow these give way, not the numbers
            table.add_column(heading, overflow="ellipsis", min_width=4 if heading == "collapsed" else None)
        largest, smallest = self.ends(max_latents)
        hidden = len(self.mean_kl) - len(largest) - len(smallest)
        for group in (largest, smallest):
            for latent in group:
                numbers = (f"{number:.3g}" for number in self.numbers(latent))
                table.add_row(str(latent), *numbers, *self.answers(latent))
            if hidden and group is largest:
                table.add_row("...", f"{hidden} more")
        return table


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


def _gap(gap: CriticalGap | None) -> str:
    if gap is None:
        return "none"
    sides = f"{gap.num_below} below {gap.lower:.3g}, {gap.num_above} above {gap.upper:.3g}"
    if gap.is_clear:
        return f"{sides}: no ε between changes the answer"
    return f"none is clear: {sides}"
