"""What a report says at one pair (ε, δ)."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import RenderableType

from lineavae import _io
from lineavae._arguments import check_integer, check_number
from lineavae._optional import require
from lineavae._printing import Printed
from lineavae.collapse import _document, _plots, _tables
from lineavae.collapse._counts import clopper_pearson, frozen, num_allowed, unstrict
from lineavae.collapse.verdicts import (
    LIVE_ABOVE,
    NO_GAP_BELOW,
    CollapseCurve,
    CriticalEpsilon,
    CriticalGap,
    Interval,
    Verdict,
    gap_ratio,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from lineavae.collapse.report import CollapseReport

_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


class CollapseAt(Printed):
    """What a report says at one pair (ε, δ): verdicts, intervals, tables and figures.

    `CollapseReport.at` makes it. What it keeps is computed once, when it is first asked for; the arrays
    are read-only.

    Attributes
    ----------
    report : CollapseReport
        The report.
    epsilon : float
        The threshold ε in nats.
    delta : float
        The fraction δ.
    level : float
        The confidence level of what is said of the population.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import CollapseReport
    >>> from lineavae.ops import collapse_statistics
    >>> mean = torch.tensor([2.0, 0.1, 0.02, 1.6]).expand(400, 4)  # of KL m²/2
    >>> report = CollapseReport(collapse_statistics(mean, 0 * mean, [0.01]), [0.01])
    >>> at = report.at(epsilon=0.01, delta=0.01)
    >>> at
    CollapseAt(epsilon=0.01, delta=0.01, num_samples=400, latent_dim=4)
    >>> at.collapsed
    array([False,  True,  True, False])
    >>> at.collapse_test(level=0.95).tolist()
    ['not collapsed', 'collapsed', 'collapsed', 'not collapsed']
    >>> at.critical_gap
    CriticalGap(num_below=2, num_above=2, lower=0.00500..., upper=1.28...)
    >>> at.live_latents()
    array([ True, False, False,  True])
    """

    def __init__(self, report: CollapseReport, epsilon: float, delta: float, level: float) -> None:
        self.report = report
        self.epsilon = check_number("CollapseReport.at", "epsilon", epsilon, at_least=0)
        self.delta = check_number("CollapseReport.at", "delta", delta, at_least=0, below=1)
        self.level = check_number("CollapseReport.at", "level", level, above=0, below=1)

    @cached_property
    def verdict(self) -> Verdict:
        """Which latents are collapsed, and of which the statistics leave it open.

        If ε is a threshold of the statistics or an edge of the histogram, every latent is decided that no KL
        of NaN could tip. Otherwise a latent is open if ε lies between the bounds of its critical ε.
        """
        surely, possibly = (self.report._collapsed(count, self.delta) for count in self._below)
        return Verdict(frozen(surely), frozen(surely == possibly))

    @property
    def collapsed(self) -> _Bools:
        """Which latents are collapsed, (K,).

        Raises
        ------
        ValueError
            The statistics leave it open for some latent; `verdict` tells for which. This cannot happen
            if ε is one of their thresholds and no KL is NaN.
        """
        collapsed, decided = self.verdict
        tipped = ~decided & (self.report.nan > 0)
        if tipped.any():
            raise ValueError(
                f"CollapseAt.collapsed: the verdict on {_tables.share(tipped)} is open, because some KL "
                "are NaN; verdict tells on which"
            )
        if not decided.all():
            raise ValueError(
                "CollapseAt.collapsed: epsilon must be one of the thresholds, "
                f"{self.report.thresholds.tolist()}, got {self.epsilon}, where the verdict on "
                f"{_tables.share(~decided)} is open; verdict tells on which"
            )
        return collapsed

    @cached_property
    def fraction_below(self) -> Interval:
        """The fraction of the samples whose KL is below ε (zero at ε = 0), (K,).

        The bounds are equal, and the fraction is exact, if ε is a threshold of the statistics or an edge of
        the histogram and no KL is NaN. Without samples they are NaN.
        """
        low, high = self._below
        total = self.report.num_samples or np.nan
        return Interval(frozen(low / total), frozen(high / total))

    def confidence_interval(self, level: float | None = None) -> Interval:
        """Give a confidence interval of the probability that a sample's KL is below ε (zero at ε = 0), (K,).

        The interval is that of Clopper and Pearson (1934). If the samples are independent, it lies above the
        probability in at most the fraction (1 - level) / 2 of all cases, and below it in as many. If only
        bounds of the number of samples below ε are known, it covers the intervals of both bounds; without
        samples it is [0, 1]. The level is `level` if none is given.
        """
        level = self.level if level is None else level
        level = check_number("CollapseAt.confidence_interval", "level", level, above=0, below=1)
        return clopper_pearson(*self._below, self.report.num_samples, level)

    def collapse_test(self, level: float | None = None) -> NDArray[np.str_]:
        """Tell what the samples prove of the population that they are drawn from, (K,).

        ``"collapsed"`` where the whole confidence interval of P[KL < ε] is at or above 1 - δ,
        ``"not collapsed"`` where it is below, else ``"undetermined"`` with this many samples. At δ = 0.01 and
        level 0.95 no fewer than 368 samples prove a collapse. The level, `level` if none is given, is
        that of one latent: for all K statements to hold together, give 1 - 0.05/K.
        """
        lower, upper = self.confidence_interval(level)
        return np.select(
            [lower >= 1 - self.delta, upper < 1 - self.delta], ["collapsed", "not collapsed"], "undetermined"
        )

    @cached_property
    def critical_epsilon(self) -> CriticalEpsilon:
        """The critical ε of each latent at this δ: for every ε above it the latent is (ε, δ)-collapsed.

        It is the (1 - δ) quantile of the latent's KL, order statistic number N - floor(δ N), where a product
        that is an integer but for rounding counts as that integer. It lies in one bin of the histogram: in
        [2⁻²⁴, 2¹⁶) nats the bounds are at most 1/16 apart, relative to the lower, and the estimate is at most
        1/32 off. Thresholds, minimum and maximum narrow the bounds; at δ = 0 they are equal. If some values
        are NaN, the bounds allow for all that these may be (from 0 to infinity if all are NaN), and the
        estimate is that of the others.
        """
        report = self.report
        rank = np.full(report.latent_dim, report.num_samples - num_allowed(self.delta, report.num_samples))
        lower, upper = report._order_statistic(rank - report.nan).lower, report._order_statistic(rank).upper
        known = report._known
        least, most = report._order_statistic(known - num_allowed(self.delta, known))
        # both may be infinite
        width = np.subtract(most, least, where=least < most, out=np.zeros(report.latent_dim))
        estimate = np.where(known > 0, least + width / 2, np.nan)
        return CriticalEpsilon(*map(frozen, (estimate, lower, upper)))

    @cached_property
    def critical_gap(self) -> CriticalGap | None:
        """The largest gap between the critical ε of the latents, sorted.

        The largest gap has the largest ratio of its ends, which are bounds of `critical_epsilon`; all
        values below 0.001 nats count as equal. It is clear if it spans a factor of ten. It is None if there
        is no gap above 0.001 nats. A latent is left out if all its KL values are NaN; a latent with an
        infinite critical ε is above every gap.
        """
        critical = self.critical_epsilon
        known = ~np.isnan(critical.estimate)
        lower, upper = np.sort(critical.lower[known]), np.sort(critical.upper[known])
        ends = lower[1:][np.isfinite(lower[1:])]
        ratios = gap_ratio(upper[: len(ends)], ends)
        if not (ratios > 1).any():
            return None
        below = int(ratios.argmax()) + 1
        return CriticalGap(below, len(lower) - below, float(upper[below - 1]), float(lower[below]))

    def live_latents(self) -> _Bools:
        """Which latents are live, (K,): those above the largest gap of critical ε, where that is clear.

        Unlike the count at one ε, these hardly change with the time of training once the gap is there. All
        are live if every critical ε is at least 1 nat, and none if every one is at most 0.001 nats. A latent
        is not if all its KL values are NaN. The largest gap may be one among live latents, if these are far
        apart: `critical_gap` has its ends.

        Raises
        ------
        ValueError
            No gap of critical ε spans a factor of ten, and neither all are at least 1 nat nor all at most
            0.001: what is live depends on ε.
        """
        if self._live is None:
            raise ValueError(
                "CollapseAt.live_latents: the critical ε must have a gap that spans a factor of ten; "
                + _tables.gap_in_words(self.critical_gap)
            )
        return self._live

    @cached_property
    def _live(self) -> _Bools | None:
        gap, critical = self.critical_gap, self.critical_epsilon
        known: _Bools = ~np.isnan(critical.estimate)
        if known.any() and (critical.lower[known] >= LIVE_ABOVE).all():
            return frozen(known)
        if gap is not None and gap.is_clear:
            return frozen(known & (critical.lower >= gap.upper))
        nothing: _Bools = critical.upper <= NO_GAP_BELOW
        return frozen(~nothing) if nothing.all() else None

    def collapse_curve(self, epsilons: ArrayLike | None = None) -> CollapseCurve:
        """Give the percentage of collapsed latents against ε at this δ, figures 5 to 11 of the paper.

        Parameters
        ----------
        epsilons
            Thresholds ε in nats, (P,). By default all those of the statistics and all edges of the histogram,
            ascending: there the curve is exact.
        """
        if epsilons is None:
            epsilons = unstrict(self.report._knots[1:-1])
        epsilons, _, lower, upper = self.report.collapse_surface(epsilons, [self.delta])
        return CollapseCurve(epsilons, lower[:, 0], upper[:, 0])

    def to_dict(self) -> dict[str, Any]:
        """Give the report as one document of numbers, strings, lists and dicts, which is strict JSON.

        ``"latents"`` holds the columns of `to_dataframe`. Undecided verdicts, and what KL values alone
        do not tell, are ``None``; numbers that are not finite are ``"Infinity"``, ``"-Infinity"`` and
        ``"NaN"``, which ``float`` reads. ``"gap"`` is `critical_gap`, ``"num_live"`` the number of
        `live_latents`, ``None`` if no gap is clear. ``"histogram"`` has the ``"edges"`` in nats of
        those bins of `lineavae.ops.histogram_edges` that any latent has a sample in, and for each latent its
        ``"counts"``, from the first bin with a sample to the last, and the number of that bin, ``"first"``.
        `CollapseReport.load` reads the document from a file.
        """
        return _document.write(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """Give `to_dict` as JSON, and write it to a file, atomically, if a path is given."""
        text = json.dumps(self.to_dict(), allow_nan=False)
        if path is not None:
            _io.write_text(Path(path), text + "\n")
        return text

    def to_dataframe(self) -> DataFrame:
        """Give a pandas DataFrame with one row per latent; needs pandas."""
        pandas = require("pandas", "dataframe")
        frame: DataFrame = pandas.DataFrame(self.columns()).rename_axis("latent")
        return frame.astype({"collapsed": "boolean"})

    def plot_curve(self) -> Figure:
        """Draw the percentage of collapsed latents against ε, with this ε marked; needs matplotlib."""
        return _plots.plot_curve(
            rf"{self.report._size}, $\delta = {self.delta:g}$",
            self.collapse_curve(),
            self.critical_epsilon.estimate,
            self.epsilon,
        )

    def plot_spectrum(self) -> Figure:
        """Draw each latent's mean KL and critical ε, coloured by the verdict; needs matplotlib."""
        return _plots.plot_spectrum(
            rf"{self.report._size}, $\delta = {self.delta:g}$",
            self.report.mean_kl,
            self.critical_epsilon.estimate,
            self.verdict,
            self.epsilon,
        )

    def summary(self, max_latents: int | None = 20) -> RenderableType:
        """Give the printed report, for ``rich.print``.

        It has at most ``max_latents`` rows, those with the smallest critical ε first: one half is for these,
        the other for those with the largest. None gives every latent a row.
        """
        if max_latents is not None:
            max_latents = check_integer("CollapseAt.summary", "max_latents", max_latents, 0)
        return _tables.Summary(self).render(max_latents)

    @cached_property
    def _below(self) -> tuple[_Ints, _Ints]:
        """Bounds of the number of samples below ε, (K,) each."""
        low, high = self.report._count_below(np.array([self.epsilon]))
        return low[:, 0], high[:, 0]

    @property
    def _kinds(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Whether each latent is active, and its classification: None where moments are not known."""
        if self.report.has_moments:
            return self.report.active_units(), self.report.classification()
        unknown = np.full(self.report.latent_dim, None)
        return unknown, unknown

    def columns(self) -> dict[str, list[Any]]:
        """Give the columns of `to_dataframe`, a value per latent."""
        report, critical = self.report, self.critical_epsilon
        collapsed = self.verdict.collapsed.astype(object)
        collapsed[~self.verdict.decided] = None
        counts = {
            _document.threshold_column(threshold): count
            for threshold, count in zip(report.thresholds.tolist(), report.counts.T, strict=True)
        }
        columns = {
            "collapsed": collapsed,
            "collapse_test": self.collapse_test(),
            "critical_epsilon": critical.estimate,
            "critical_epsilon_lower": critical.lower,
            "critical_epsilon_upper": critical.upper,
            **dict(zip(("active", "classification"), self._kinds, strict=True)),
            **{name: getattr(report, name) for name in _document.MOMENTS},
            "infinite": report.infinite,
            "nan": report.nan,
            **counts,
        }
        return {name: column.tolist() for name, column in columns.items()}

    def __rich__(self) -> RenderableType:
        return self.summary()

    def __repr__(self) -> str:
        report = self.report
        return (
            f"CollapseAt(epsilon={self.epsilon}, delta={self.delta}, "
            f"num_samples={report.num_samples}, latent_dim={report.latent_dim})"
        )
