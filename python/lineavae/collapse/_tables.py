"""The report as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from lineavae.collapse._posterior import WIDE

if TYPE_CHECKING:
    from lineavae.collapse.report import CollapseAt, CriticalGap

_Strings: TypeAlias = "NDArray[np.str_]"

_SHORT = {"collapsed": "yes", "not collapsed": "no", "undetermined": "open"}


def summarize(at: CollapseAt, max_latents: int | None) -> RenderableType:
    """Tell what is broken, what is collapsed, and give the latents of the largest and smallest mean KL."""
    report, test = at.report, at.collapse_test()
    kinds, active = report.classification(), report.active_units()
    warnings = (
        (report.nan > 0, "have samples whose KL is NaN, which may be anything"),
        (report.infinite > 0, "have samples of infinite KL, above every ε"),
    )
    return Group(
        *(f"{share(broken)} {what}: latents {ranges(broken)}" for broken, what in warnings if broken.any()),
        *([f"Warning: {WIDE}"] if report.is_wider_than_prior else []),
        f"{report.num_samples} samples, {report.latent_dim} latents",
        _facts(at, test, kinds, int(active.sum())),
        "",
        _latents(at, test, kinds, active, max_latents),
    )


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


def _facts(at: CollapseAt, test: _Strings, kinds: _Strings, num_active: int) -> Table:
    report, verdict = at.report, at.verdict
    percent = 100 * verdict.collapsed.mean()
    facts = Table.grid(padding=(0, 3, 0, 0))
    facts.add_row(f"({at.epsilon:g}, {at.delta:g})-collapsed", f"{share(verdict.collapsed)}, {percent:.1f} %")
    if verdict.collapsed.any():
        facts.add_row("", f"latents {ranges(verdict.collapsed)}")
    for mask, why in (
        (report.nan == 0, f"{at.epsilon:g} is no threshold"),
        (report.nan > 0, "some KL is NaN"),
    ):
        if (mask & ~verdict.decided).any():
            facts.add_row("  not decided", f"latents {ranges(mask & ~verdict.decided)}: {why}")
    names = ("collapsed", "not collapsed", "undetermined")
    facts.add_row("  with 95 % confidence", ", ".join(f"{(test == name).sum()} {name}" for name in names))
    facts.add_row("largest gap of critical ε", _gap(at.critical_gap))
    facts.add_row("active units", f"{num_active}, variance of the posterior mean >= 0.01")
    names = ("passive", "mixed", "active")
    facts.add_row("variables", ", ".join(f"{(kinds == name).sum()} {name}" for name in names))
    unknown = np.isnan(report.mean_kl)
    total = f"{report.mean_kl.sum():.5g} nats, sum over latents"
    facts.add_row("mean KL", f"unknown for latents {ranges(unknown)}" if unknown.any() else total)
    return facts


def _gap(gap: CriticalGap | None) -> str:
    if gap is None:
        return "none"
    sides = f"{gap.num_below} below {gap.lower:.3g}, {gap.num_above} above {gap.upper:.3g}"
    if gap.is_clear:
        return f"{sides}: no ε between changes the answer"
    return f"none is clear: {sides}"


def _latents(
    at: CollapseAt, test: _Strings, kinds: _Strings, active: NDArray[np.bool_], max_latents: int | None
) -> RenderableType:
    report, verdict, critical = at.report, at.verdict, at.critical_epsilon
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for heading in ("latent", "mean KL", "critical ε", "to"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("collapsed", "at 95 %", "active", "variable"):
        # where the terminal is narrow these give way, not the numbers
        table.add_column(heading, overflow="ellipsis", min_width=4 if heading == "collapsed" else None)
    order = np.argsort(-report.mean_kl, kind="stable").tolist()
    hidden = 0 if max_latents is None else max(report.latent_dim - max_latents, 0)
    first = (report.latent_dim - hidden + 1) // 2 if hidden else report.latent_dim
    for rank, latent in enumerate(order):
        if first <= rank < first + hidden:
            if rank == first:
                table.add_row("...", f"{hidden} more")
            continue
        numbers = (report.mean_kl[latent], critical.lower[latent], critical.upper[latent])
        answer = "yes" if verdict.collapsed[latent] else "no" if verdict.decided[latent] else "open"
        table.add_row(
            str(latent),
            *(f"{number:.3g}" for number in numbers),
            answer,
            _SHORT[test[latent]],
            "yes" if active[latent] else "no",
            kinds[latent],
        )
    return table
