"""Several models, or checkpoints of one, side by side: what is collapsed, what died and woke between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from operator import eq
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from lineavae._optional import require
from lineavae._paper import DELTA, EPSILON, LEVEL
from lineavae._printing import Printed
from lineavae.collapse import _document, _plots
from lineavae.collapse._tables import ranges
from lineavae.collapse.at import CollapseAt
from lineavae.collapse.report import CollapseReport
from lineavae.collapse.verdicts import LIVE_ABOVE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]


class Change(NamedTuple):
    """What became of the latents from one model to the next, (K,) each, matched by their index.

    Of models with different numbers of latents nothing is matched, and the arrays are empty.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import CollapseReport, compare
    >>> from lineavae.ops import collapse_statistics
    >>> mean = torch.tensor([2.0, 1.0]).expand(1000, 2)
    >>> before, after = (
    ...     CollapseReport(collapse_statistics(m, 0 * m, [0.01]), [0.01]) for m in (mean, mean - 1)
    ... )
    >>> (change,) = compare([before, after]).changes
    >>> change.before, change.after, change.died
    ('0', '1', array([False,  True]))
    """

    before: str
    """Name of the one model."""
    after: str
    """Name of the next."""
    died: _Bools
    """Latents that are not collapsed before, and are after."""
    woke: _Bools
    """Latents that are collapsed before, and are not after."""
    p_value: _Floats
    """Of those that died or woke, the p-value of equal fractions of samples below ε, for all K latents
    together; of others NaN. See `compare`."""


class CollapseComparison(Printed):
    """Several models at one pair (ε, δ): a table, the course of each latent, and figures.

    `compare` makes it.

    Attributes
    ----------
    models : dict of str to CollapseAt
        What the report of each model says at (ε, δ), by the model's name, in the order given.
    epsilon : float
        The threshold ε in nats.
    delta : float
        The fraction δ.
    level : float
        The confidence level of changes.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import CollapseReport, compare
    >>> from lineavae.ops import collapse_statistics
    >>> mean = torch.tensor([2.0, 1.0, 0.01]).expand(1000, 3)
    >>> report = CollapseReport(collapse_statistics(mean, 0 * mean, [0.01]), [0.01])
    >>> comparison = compare({"epoch=10": report, "epoch=20": report}, epsilon=0.01, delta=0.01)
    >>> comparison
    CollapseComparison('epoch=10', 'epoch=20', epsilon=0.01, delta=0.01)
    >>> comparison.models["epoch=20"].live_latents()
    array([ True,  True, False])
    >>> comparison.to_dataframe()["num_collapsed"].tolist()
    [1, 1]
    """

    def __init__(self, models: Mapping[str, CollapseAt]) -> None:
        self.models = dict(models)
        first = next(iter(self.models.values()))
        self.epsilon, self.delta, self.level = first.epsilon, first.delta, first.level

    @cached_property
    def changes(self) -> list[Change]:
        """What died and woke from each model to the next."""
        return [_change(before, after) for before, after in pairwise(self.models.items())]

    def to_dict(self) -> dict[str, Any]:
        """Give the comparison as one document of numbers, strings, lists and dicts, which is strict JSON.

        ``"models"`` has `CollapseAt.to_dict` of each model, ``"changes"`` the index and p-value of each
        latent that died or woke, or ``None`` where latents are not matched.
        """
        return {
            **_document.head(_document.COMPARISON),
            "epsilon": self.epsilon,
            "delta": self.delta,
            "level": self.level,
            "models": {name: at.to_dict() for name, at in self.models.items()},
            "changes": [
                {
                    "before": change.before,
                    "after": change.after,
                    "died": _named(change, change.died),
                    "woke": _named(change, change.woke),
                }
                for change in self.changes
            ],
        }

    def to_dataframe(self) -> DataFrame:
        """Give a pandas DataFrame with one row per model; needs pandas.

        ``"num_live"`` is missing where no gap of critical ε is clear, ``"num_active"`` where KL values were
        given alone; ``"mean_kl"`` is the sum over latents.
        """
        frame: DataFrame = require("pandas", "dataframe").DataFrame(self.columns())
        return frame.set_index("model").astype({"num_live": "Int64", "num_active": "Int64"})

    def columns(self) -> dict[str, list[Any]]:
        """Give the columns of the table by model."""
        models = self.models.values()
        return {
            "model": list(self.models),
            "num_samples": [at.report.num_samples for at in models],
            "latent_dim": [at.report.latent_dim for at in models],
            "num_collapsed": [int(at.verdict.collapsed.sum()) for at in models],
            "num_undecided": [int((~at.verdict.decided).sum()) for at in models],
            "num_live": [None if at._live is None else int(at._live.sum()) for at in models],
            "num_active": [at.report.num_active() if at.report.has_moments else None for at in models],
            "mean_kl": [float(at.report.mean_kl.sum()) for at in models],
        }

    def plot_curves(self) -> Figure:
        """Draw the percentage of collapsed latents of every model against ε; needs matplotlib."""
        return _plots.plot_curves(
            rf"{self.size}, $\delta = {self.delta:g}$",
            {name: at.collapse_curve() for name, at in self.models.items()},
            np.concatenate([at.critical_epsilon.estimate for at in self.models.values()]),
            self.epsilon,
        )

    def plot_heat_map(self) -> Figure:
        """Draw the critical ε of every latent in every model, latents ordered by the last; needs matplotlib.

        Raises
        ------
        ValueError
            The models have different numbers of latents, so that these are not matched.
        """
        dims = self.columns()["latent_dim"]
        if len(set(dims)) > 1:
            raise ValueError(
                "CollapseComparison.plot_heat_map: models must have the same number of latents, got "
                + ", ".join(f"{dim} of {name}" for name, dim in zip(self.models, dims, strict=True))
            )
        critical = np.stack([at.critical_epsilon.estimate for at in self.models.values()], -1)
        title = rf"{self.size}, $\delta = {self.delta:g}$"
        return _plots.plot_heat_map(title, list(self.models), critical, self.epsilon)

    @property
    def size(self) -> str:
        """Models, and what they have in common of latents and samples."""
        columns = self.columns()
        words = [f"{len(self.models)} model{'s' * (len(self.models) > 1)}"]
        for name, what in (("latent_dim", "{} latents"), ("num_samples", "N = {}")):
            few = sorted(set(columns[name]))
            words.append(what.format(f"{few[0]} to {few[-1]}" if len(few) > 1 else few[0]))
        return ", ".join(words)

    def table(self) -> dict[str, list[float | None]]:
        """Give what is printed of each model: numbers by their heading."""
        columns = self.columns()
        shown = {
            "samples": columns["num_samples"],
            "latents": columns["latent_dim"],
            "collapsed": columns["num_collapsed"],
            "undecided": columns["num_undecided"],
            "live": columns["num_live"],
            "active": columns["num_active"],
            "mean KL": columns["mean_kl"],
        }
        for name in ("samples", "latents"):
            if len(set(shown[name])) == 1:
                del shown[name]
        if not any(shown["undecided"]):
            del shown["undecided"]
        return shown

    def course(self) -> Iterator[tuple[str, str]]:
        """Say what died and woke from each model to the next, label and text."""
        for change in self.changes:
            label = f"{change.before} to {change.after}"
            certain = change.p_value <= 1 - self.level
            lines = [
                f"{mask.sum()} {what}: {ranges(mask)}"
                for mask, what in (
                    (change.died & certain, "died"),
                    (change.died & ~certain, "may have died"),
                    (change.woke & certain, "woke"),
                    (change.woke & ~certain, "may have woken"),
                )
                if mask.any()
            ]
            if not len(certain):
                before, after = (self.models[name].report.latent_dim for name in change[:2])
                lines = [f"not matched: {before} latents and {after}"]
            for line in lines or ["none died or woke"]:
                yield label, line
                label = ""

    def meaning(self) -> list[str]:
        """Say what is meant by live, died and woke."""
        columns = self.columns()
        live, latents = columns["num_live"], columns["latent_dim"]
        everything = f", all where none is below {LIVE_ABOVE:g}" if any(map(eq, live, latents)) else ""
        known = ", ? where none is clear" if None in live else ""
        percent = f"{100 * self.level:.10g} %"
        return [
            f"live: above the largest gap of critical ε{everything}{known}",
            *([f"died, woke: at {percent} for all latents of two models together"] if self.changes else []),
        ]

    def __rich__(self) -> RenderableType:
        shown = self.table()
        models = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        models.add_column("model", no_wrap=True)
        for heading in shown:
            models.add_column(heading, justify="right", no_wrap=True)
        for name, *numbers in zip(self.models, *shown.values(), strict=True):
            models.add_row(name, *("?" if number is None else f"{number:.5g}" for number in numbers))
        course = Table.grid(padding=(0, 3, 0, 0))
        for label, text in self.course():
            course.add_row(label, text)
        head = f"{self.size}, at ε = {self.epsilon:g}, δ = {self.delta:g}"
        parts: list[RenderableType] = ["", course] if self.changes else []
        return Group(head, "", models, *parts, "", *self.meaning())

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self.models))
        return f"CollapseComparison({names}, epsilon={self.epsilon}, delta={self.delta})"


def compare(
    reports: Mapping[str, CollapseReport] | Sequence[CollapseReport],
    epsilon: float = EPSILON,
    delta: float = DELTA,
    level: float = LEVEL,
) -> CollapseComparison:
    """Compare the collapse of several models, or of several checkpoints of one.

    From each model to the next the latents are matched by their index: latent j died if it is not
    (ε, δ)-collapsed in the one, and is in the next. Whether that may be chance says Fisher's exact test of
    two proportions, those of the samples whose KL is below ε: two-sided, twice the smaller tail (Fay 2010),
    times the number of latents K (Bonferroni). So of two models that are the same, one latent or more is
    said to have changed in at most the fraction 1 - level of all cases, if the samples are independent. If
    both were given the same samples, as checkpoints on one data set are, the test is conservative.

    Parameters
    ----------
    reports
        Reports by the names of their models, or reports alone, which are then named by their index.
    epsilon
        Threshold ε in nats, finite and >= 0.
    delta
        Fraction δ of the samples that may have a larger KL, >= 0 and < 1.
    level
        Confidence level of changes, > 0 and < 1.

    Raises
    ------
    TypeError
        One of them is no `CollapseReport`, or a name is no string.
    ValueError
        There is none.

    References
    ----------
    Fisher (1935). The logic of inductive inference. Journal of the Royal Statistical Society 98.

    Fay (2010). Confidence intervals that match Fisher's exact or Blaker's exact tests. Biostatistics 11.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import CollapseReport, compare
    >>> from lineavae.ops import collapse_statistics
    >>> reports = {}
    >>> for epoch, scale in ((10, [2.0, 1.0, 0.2]), (100, [2.0, 1.6, 0.001])):
    ...     mean = torch.tensor(scale).expand(1000, 3)
    ...     reports[f"epoch={epoch}"] = CollapseReport(collapse_statistics(mean, 0 * mean, [0.01]), [0.01])
    >>> comparison = compare(reports)
    >>> comparison.changes[0].died, comparison.changes[0].woke
    (array([False, False,  True]), array([False, False, False]))
    >>> print(comparison)
    2 models, 3 latents, N = 1000, at ε = 0.01, δ = 0.01
    <BLANKLINE>
    model      collapsed  live  active  mean KL
    epoch=10           0     2       0     2.52
    epoch=100          1     2       0     3.28
    <BLANKLINE>
    epoch=10 to epoch=100   1 died: 2
    <BLANKLINE>
    live: above the largest gap of critical ε
    died, woke: at 95 % for all latents of two models together
    """
    if not isinstance(reports, Mapping | Sequence):
        raise TypeError(f"compare: reports must be a mapping or a sequence, got {type(reports).__name__}")
    named = reports if isinstance(reports, Mapping) else {str(i): report for i, report in enumerate(reports)}
    if not named:
        raise ValueError("compare: reports must be at least one, got none")
    for name, report in named.items():
        if not isinstance(name, str) or not isinstance(report, CollapseReport):
            raise TypeError(
                "compare: reports must be CollapseReport by str, "
                f"got {type(report).__name__} by {type(name).__name__}"
            )
    return CollapseComparison({name: report.at(epsilon, delta, level) for name, report in named.items()})


def _change(before: tuple[str, CollapseAt], after: tuple[str, CollapseAt]) -> Change:
    names, (one, other) = (before[0], after[0]), (before[1], after[1])
    if one.report.latent_dim != other.report.latent_dim:
        nothing = np.empty(0, np.bool_)
        return Change(*names, nothing, nothing, np.empty(0))
    decided = one.verdict.decided & other.verdict.decided
    died = decided & ~one.verdict.collapsed & other.verdict.collapsed
    woke = decided & one.verdict.collapsed & ~other.verdict.collapsed
    changed = died | woke
    p_value = np.full(len(changed), np.nan)
    p_value[changed] = np.minimum(1, len(changed) * _fisher(one, other, changed))
    return Change(*names, died, woke, p_value)


def _fisher(one: CollapseAt, other: CollapseAt, latents: _Bools) -> _Floats:
    """Give the two-sided p-value of equal probabilities below ε; of counts in bounds, the largest."""
    from scipy.stats import hypergeom  # which takes a second to import

    sizes = one.report.num_samples, other.report.num_samples
    (low, high), (other_low, other_high) = (
        tuple(bound[latents] for bound in at._below) for at in (one, other)
    )
    # given how many of all samples are below, those of the one model are hypergeometric
    rose = hypergeom.cdf(high, sum(sizes), high + other_low, sizes[0])
    fell = hypergeom.sf(low - 1, sum(sizes), low + other_high, sizes[0])
    p_value: _Floats = np.minimum(1, 2 * np.minimum(rose, fell))
    return p_value


def _named(change: Change, mask: _Bools) -> list[dict[str, Any]] | None:
    if not len(mask):
        return None
    latents = np.flatnonzero(mask).tolist()
    return [{"latent": latent, "p_value": float(change.p_value[latent])} for latent in latents]
