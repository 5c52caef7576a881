"""What the statistics of a set of posteriors say about their collapse."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.console import Console, RenderableType
from scipy.special import betainccinv, betaincinv
from torch import Tensor

from lineavae import _io
from lineavae._arguments import check_integer, check_number
from lineavae._optional import require
from lineavae._paper import DELTA, EPSILON
from lineavae.collapse import _plots, _tables
from lineavae.collapse._posterior import is_wider_than_prior
from lineavae.collapse.verdicts import (
    CollapseCurve,
    CollapseSurface,
    CriticalEpsilon,
    CriticalGap,
    Interval,
    Verdict,
    gap_ratio,
)
from lineavae.ops import LatentStatistics, collapse_statistics, histogram_edges

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]

# the smallest float64 above zero: KL <= 0 is KL < _TINY, so that every comparison is strict
_TINY = np.nextafter(0.0, 1.0)

_NAME = "CollapseReport"


class CollapseReport:
    """Which latents of a VAE are collapsed, at any (ε, δ), and how certain that is.

    Latent j is (ε, δ)-collapsed if KL(q(z_j|x) ‖ p(z_j)) < ε for at least the fraction 1 - δ of the samples x
    (<= at ε = 0). The report holds counts and a histogram of the KL values, not the values. What these decide
    is exact; where they leave bounds, the results are bounds. A KL that is infinite is above every ε. A KL
    that is NaN may be anything: bounds allow for all that it may be, and a verdict that it could tip is open.

    `CollapseStatistics` makes it of posteriors.

    Parameters
    ----------
    statistics
        What `lineavae.ops.collapse_statistics` returned for posteriors (N, K), or several such merged.
    thresholds
        The thresholds ε in nats given to it, (E,), in the same order.

    Raises
    ------
    TypeError
        The statistics are no `LatentStatistics`, or one of them has another dtype; the thresholds are a
        tensor of another dtype than float64, or one of them is no number.
    ValueError
        The statistics are of several models, of no latent, without a histogram, not of the same samples for
        all latents, or no counts at these thresholds; the thresholds are not finite and >= 0.

    Attributes
    ----------
    num_samples : int
        Number of samples N.
    latent_dim : int
        Number of latents K.
    infinite, nan : ndarray
        Number of samples whose KL is infinite, and of those whose KL is NaN, (K,), int64.
    thresholds : ndarray
        Thresholds ε in nats at which samples were counted, (E,), float64, in the order given.
    counts : ndarray
        Number of samples with a KL below each threshold, (K, E), int64; at ε = 0 with a KL of zero.
    mean_kl, kl_variance, min_kl, max_kl : ndarray
        Mean, variance, minimum and maximum of the KL in nats, (K,), float64. These and all below are of the
        N_j samples whose KL is not NaN.
    mean_of_mean, variance_of_mean : ndarray
        Mean and variance of the posterior mean over the samples, (K,), float64. The variance is the
        active-unit statistic Var_x(E_q[z_j]).
    mean_variance, variance_of_variance : ndarray
        Mean and variance of the posterior variance over the samples, (K,), float64.

    Notes
    -----
    Variances are biased, divided by N_j: the samples are the population of the definitions. (The ``calc_au``
    of He et al. (2019) divides by N_j - 1.) Where a value is infinite, so are mean and variance; the mean is
    NaN where a posterior mean is both ∞ and -∞. Where all KL values of a latent are NaN, its statistics in
    float64 are NaN, and it is not active. The first lines of the printed report name such latents. The
    arrays are read-only.

    References
    ----------
    Lucas, Tucker, Grosse and Norouzi (2019). Don't blame the ELBO! A linear VAE perspective on posterior
    collapse. Section 6.2.

    Burda, Grosse and Salakhutdinov (2016). Importance weighted autoencoders. Section 5.2.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import CollapseReport
    >>> from lineavae.ops import collapse_statistics
    >>> generator = torch.Generator().manual_seed(0)
    >>> mean = torch.randn(1000, 3, generator=generator) * torch.tensor([1.0, 0.3, 1e-3])
    >>> statistics = collapse_statistics(mean, torch.zeros(1000, 3), thresholds=[0.01])
    >>> report = CollapseReport(statistics, thresholds=[0.01])
    >>> report
    CollapseReport(num_samples=1000, latent_dim=3)
    >>> report.at(epsilon=0.01, delta=0.01).collapsed
    array([False, False,  True])
    >>> report.active_units()
    array([ True,  True, False])
    """

    def __init__(self, statistics: LatentStatistics, thresholds: Sequence[float] | Tensor) -> None:
        if isinstance(thresholds, Tensor):
            if thresholds.dtype != torch.float64:
                raise TypeError(f"{_NAME}: thresholds must be float64, got {thresholds.dtype}")
            thresholds = thresholds.tolist()
        self.thresholds = _frozen(_check_all(_NAME, "thresholds", thresholds, at_least=0))
        _check_shapes(statistics, len(self.thresholds))
        counts, histogram, moments, minimum, maximum, infinite, nan = (
            part.cpu().numpy() for part in statistics
        )
        self.counts, self.infinite, self.nan = map(_frozen, (counts, infinite, nan))
        self._known: _Ints = histogram.sum(-1)  # N_j
        num_samples = self._known + nan
        if (num_samples != num_samples[0]).any():
            raise ValueError(
                f"{_NAME}: statistics must be of the same samples for every latent, got "
                f"{num_samples.min()} to {num_samples.max()} samples"
            )
        self.num_samples, self.latent_dim = int(num_samples[0]), len(nan)
        some = self._known > 0
        self.min_kl, self.max_kl = (_frozen(np.where(some, bound, np.nan)) for bound in (minimum, maximum))
        means = np.where(some, moments[:, 1::2].T, np.nan)
        variances = np.where(some, moments[:, 2::2].T, np.nan) / np.maximum(self._known, 1)
        self.mean_kl, self.mean_of_mean, self.mean_variance = map(_frozen, means)
        self.kl_variance, self.variance_of_mean, self.variance_of_variance = map(_frozen, variances)
        self._knots, self._below = _cumulate(histogram, infinite, counts, self.thresholds)

    def at(self, epsilon: float = EPSILON, delta: float = DELTA) -> CollapseAt:
        """Give what the report says at one pair (ε, δ): verdicts, intervals, tables, figures.

        Parameters
        ----------
        epsilon
            Threshold ε in nats, finite and >= 0; by default the paper's, 0.01.
        delta
            Fraction δ of the samples that may have a larger KL, >= 0 and < 1; by default the paper's, 0.01.
        """
        return CollapseAt(self, epsilon, delta)

    @property
    def histogram(self) -> _Ints:
        """Number of samples in each bin of `lineavae.ops.histogram_edges`, (K, 642), int64."""
        # kept as the counts below its edges alone: with thousands of latents one is large
        edges = np.isin(self._knots, histogram_edges().numpy())
        histogram = np.empty((self.latent_dim, np.count_nonzero(edges) - 1), np.int64)
        for latents in blocks(self.latent_dim):
            histogram[latents] = np.diff(self._below[latents, edges])
        histogram[:, -1] += self.infinite
        histogram.setflags(write=False)
        return histogram

    def active_units(self, threshold: float = 0.01) -> _Bools:
        """Tell whose posterior mean varies, (K,): Var_x(E_q[z_j]) >= threshold (Burda et al. 2016).

        The variance is that of the means as they were given: float32 near 10⁷ has steps of 1, and whatever
        varies by less has a variance of 0, or of up to 1/4, there.
        """
        return self.variance_of_mean >= check_number(
            "CollapseReport.active_units", "threshold", threshold, at_least=0
        )

    def num_active(self, threshold: float = 0.01) -> int:
        """Give the number of active units."""
        return int(self.active_units(threshold).sum())

    @cached_property
    def is_wider_than_prior(self) -> bool:
        """Whether all log-variances look like variances or standard deviations.

        In every latent E v_j > 1, E[m_j² + v_j] > 1.5, and v_j deviates by at most E v_j - 1. A VAE that
        can scale its latents is stationary only at E[m_j² + v_j] = 1, whatever β is; with v_j in the place of
        log v_j the sum is at least one more.
        """
        with np.errstate(over="ignore"):
            mean_square = self.variance_of_mean + np.square(self.mean_of_mean)
        return bool(is_wider_than_prior(mean_square, self.mean_variance, self.variance_of_variance))

    def collapse_surface(self, epsilons: ArrayLike, deltas: ArrayLike) -> CollapseSurface:
        """Give the percentage of collapsed latents for every pair of ε in nats, (P,), and δ, (Q,)."""
        caller = "CollapseReport.collapse_surface"
        epsilons = _check_all(caller, "epsilons", epsilons, at_least=0)
        deltas = _check_all(caller, "deltas", deltas, at_least=0, below=1)
        bounds = self._count_below(epsilons)
        lower, upper = np.empty((2, len(epsilons), len(deltas)))
        for percent, count in ((lower, bounds[0]), (upper, bounds[1])):
            for q, delta in enumerate(deltas):
                percent[:, q] = 100 * self._collapsed(count, delta).mean(0)
        return CollapseSurface(epsilons, deltas, lower, upper)

    def classification(self, var_threshold: float = 0.1, mean_error_range: float = 0.1) -> NDArray[np.str_]:
        """Sort the latents into ``"passive"``, ``"mixed"`` and ``"active"`` variables, (K,).

        The posterior variance v_j decides, by its mean and its variance over the samples. Passive: v_j stays
        near 1, the prior's; its mean is within ``mean_error_range`` of 1 and its variance below
        ``var_threshold``. Active: v_j stays near 0; its mean is at most ``mean_error_range`` and its variance
        below ``var_threshold``. Mixed: all others, for instance latents that are active for some samples
        only. ``"undefined"``: every KL is NaN.

        References
        ----------
        Bonheme and Grzes (2021). Be more active! Understanding the differences between mean and sampled
        representations of variational autoencoders. The thresholds are those of their code.
        """
        caller = "CollapseReport.classification"
        var_threshold = check_number(caller, "var_threshold", var_threshold, at_least=0)
        mean_error_range = check_number(caller, "mean_error_range", mean_error_range, at_least=0, below=0.5)
        steady = self.variance_of_variance < var_threshold
        return np.select(
            [
                self._known == 0,
                steady & (abs(self.mean_variance - 1) <= mean_error_range),
                steady & (self.mean_variance <= mean_error_range),
            ],
            ["undefined", "passive", "active"],
            "mixed",
        )

    def _order_statistic(self, rank: _Ints) -> Interval:
        """Give bounds of the KL of each latent that is number ``rank``, (K,), of those that are not NaN.

        Below the first is zero, for so small a KL may be, and infinity above the last.
        """
        knot = (self._below < rank[:, None]).sum(-1)
        lower = np.maximum(self._knots[knot - 1], self.min_kl)
        upper = np.minimum(_unstrict(self._knots)[np.minimum(knot, len(self._knots) - 1)], self.max_kl)
        lower = np.where(rank == self._known, self.max_kl, lower)
        upper = np.where(rank == 1, self.min_kl, upper)
        beyond = np.inf if self.num_samples else np.nan
        lower, upper = (
            np.select([rank < 1, rank > self._known], [0, beyond], bound) for bound in (lower, upper)
        )
        return Interval(lower, upper)

    def _count_below(self, epsilons: _Floats) -> tuple[_Ints, _Ints]:
        """Give bounds of the number of samples below each ε, (K, P) each."""
        epsilons = _strict(epsilons)
        low = self._below[:, np.searchsorted(self._knots, epsilons, "right") - 1]
        high = self._below[:, np.searchsorted(self._knots, epsilons, "left")]
        known, smallest, largest = self._known[:, None], self.min_kl[:, None], self.max_kl[:, None]
        low = np.where(epsilons > largest, known, np.maximum(low, epsilons > smallest))
        high = np.where(epsilons <= smallest, 0, np.minimum(high, known - (epsilons <= largest)))
        return low, high + self.nan[:, None]

    def _collapsed(self, below: _Ints, delta: float) -> _Bools:
        """Which latents are collapsed if so many samples are below ε, (K, ...)."""
        return self.num_samples - below <= _allowed(delta, self.num_samples)

    def plot_surface(self) -> Figure:
        """Draw the percentage of collapsed latents against ε and δ; needs matplotlib."""
        deltas = np.geomspace(1e-3, 0.5, 60)
        epsilons = self.at().collapse_curve().epsilons
        surface = self.collapse_surface(epsilons[epsilons > 0], deltas)
        ends = np.concatenate([self.at(delta=delta).critical_epsilon.estimate for delta in deltas[[0, -1]]])
        return _plots.plot_surface(self._size, surface, ends)

    @property
    def _size(self) -> str:
        return f"{self.latent_dim} latents, N = {self.num_samples}"

    def __rich__(self) -> RenderableType:
        return self.at().summary()

    def __str__(self) -> str:
        return str(self.at())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the printed report where a notebook or IPython shows a value."""
        printer.text(str(self))

    def __repr__(self) -> str:
        return f"CollapseReport(num_samples={self.num_samples}, latent_dim={self.latent_dim})"


class CollapseAt:
    """What a report says at one pair (ε, δ): verdicts, intervals, tables and figures.

    :meth:`CollapseReport.at` makes it. What it keeps is computed once, when it is first asked for; the arrays
    are read-only.

    Attributes
    ----------
    report : CollapseReport
        The report.
    epsilon : float
        The threshold ε in nats.
    delta : float
        The fraction δ.

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
    """

    def __init__(self, report: CollapseReport, epsilon: float, delta: float) -> None:
        self.report = report
        self.epsilon = check_number("CollapseReport.at", "epsilon", epsilon, at_least=0)
        self.delta = check_number("CollapseReport.at", "delta", delta, at_least=0, below=1)

    @cached_property
    def verdict(self) -> Verdict:
        """Which latents are collapsed, and of which the statistics leave it open.

        If ε is a threshold of the statistics or an edge of the histogram, every latent is decided that no KL
        of NaN could tip. Otherwise a latent is open if ε lies between the bounds of its critical ε.
        """
        surely, possibly = (self.report._collapsed(count, self.delta) for count in self._below)
        return Verdict(_frozen(surely), _frozen(surely == possibly))

    @property
    def collapsed(self) -> _Bools:
        """Which latents are collapsed, (K,).

        Raises
        ------
        ValueError
            The statistics leave it open for some latent; :attr:`verdict` tells for which. This cannot happen
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
        return Interval(_frozen(low / total), _frozen(high / total))

    def confidence_interval(self, level: float = 0.95) -> Interval:
        """Give a confidence interval of the probability that a sample's KL is below ε (zero at ε = 0), (K,).

        The interval is that of Clopper and Pearson (1934). If the samples are independent, it lies above the
        probability in at most the fraction (1 - level) / 2 of all cases, and below it in as many. If only
        bounds of the number of samples below ε are known, it covers the intervals of both bounds; without
        samples it is [0, 1].
        """
        level = check_number("CollapseAt.confidence_interval", "level", level, above=0, below=1)
        return clopper_pearson(*self._below, self.report.num_samples, level)

    def collapse_test(self, level: float = 0.95) -> NDArray[np.str_]:
        """Tell what the samples prove of the population that they are drawn from, (K,).

        ``"collapsed"`` where the whole confidence interval of P[KL < ε] is at or above 1 - δ,
        ``"not collapsed"`` where it is below, else ``"undetermined"`` with this many samples. At δ = 0.01 and
        level 0.95 no fewer than 368 samples prove a collapse. The level is that of one latent: for all K
        statements to hold together, give 1 - 0.05/K.
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
        rank = np.full(report.latent_dim, report.num_samples - _allowed(self.delta, report.num_samples))
        lower, upper = report._order_statistic(rank - report.nan).lower, report._order_statistic(rank).upper
        known = report._known
        least, most = report._order_statistic(known - _allowed(self.delta, known))
        # both may be infinite
        width = np.subtract(most, least, where=least < most, out=np.zeros(report.latent_dim))
        estimate = np.where(known > 0, least + width / 2, np.nan)
        return CriticalEpsilon(*map(_frozen, (estimate, lower, upper)))

    @cached_property
    def critical_gap(self) -> CriticalGap | None:
        """The largest gap between the critical ε of the latents, sorted.

        The largest gap has the largest ratio of its ends, which are bounds of :attr:`critical_epsilon`; all
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

    def collapse_curve(self, epsilons: ArrayLike | None = None) -> CollapseCurve:
        """Give the percentage of collapsed latents against ε at this δ, figures 5 to 11 of the paper.

        Parameters
        ----------
        epsilons
            Thresholds ε in nats, (P,). By default all those of the statistics and all edges of the histogram,
            ascending: there the curve is exact.
        """
        if epsilons is None:
            epsilons = _unstrict(self.report._knots[1:-1])
        epsilons, _, lower, upper = self.report.collapse_surface(epsilons, [self.delta])
        return CollapseCurve(epsilons, lower[:, 0], upper[:, 0])

    def to_dict(self) -> dict[str, Any]:
        """Give the report as numbers, strings, lists and dicts.

        ``"latents"`` holds the columns of :meth:`to_dataframe`. Undecided verdicts, and numbers that are not
        finite, are ``None``. ``"gap"`` is :attr:`critical_gap`. ``"histogram"`` has the bins of
        `lineavae.ops.histogram_edges` from the first to the last that any latent has a sample in: B + 1
        ``"edges"`` in nats, the last of which is ``None`` if infinite, and B ``"counts"`` per latent.
        """
        report, gap = self.report, self.critical_gap
        histogram = report.histogram
        occupied = np.flatnonzero(histogram.any(0))
        first, end = (int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else (0, 0)
        edges = histogram_edges()[first : end + 1].tolist()
        return {
            "num_samples": report.num_samples,
            "latent_dim": report.latent_dim,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "num_collapsed": int(self.verdict.collapsed.sum()),
            "num_undecided": int((~self.verdict.decided).sum()),
            "num_active": report.num_active(),
            "num_infinite": int((report.infinite > 0).sum()),
            "num_nan": int((report.nan > 0).sum()),
            "is_wider_than_prior": report.is_wider_than_prior,
            "gap": None if gap is None else {**gap._asdict(), "is_clear": gap.is_clear},
            "histogram": {
                "edges": _io.finite(edges),
                "counts": histogram[:, first:end].tolist(),
            },
            "latents": _io.finite(self._columns()),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Give :meth:`to_dict` as strict JSON, and write it to a file, atomically, if a path is given."""
        text = json.dumps(self.to_dict(), allow_nan=False)
        if path is not None:
            _io.write_text(Path(path), text + "\n")
        return text

    def to_dataframe(self) -> DataFrame:
        """Give a pandas DataFrame with one row per latent; needs pandas."""
        pandas = require("pandas", "dataframe")
        frame: DataFrame = pandas.DataFrame(self._columns()).rename_axis("latent")
        return frame.astype({"collapsed": "boolean"})

    def plot_curve(self) -> Figure:
        """Draw the percentage of collapsed latents against ε, with this ε marked; needs matplotlib."""
        return _plots.plot_curve(
            f"{self.report._size}, δ = {self.delta:g}",
            self.collapse_curve(),
            self.critical_epsilon.estimate,
            self.epsilon,
        )

    def plot_spectrum(self) -> Figure:
        """Draw each latent's mean KL and critical ε, coloured by the verdict; needs matplotlib."""
        return _plots.plot_spectrum(
            f"{self.report._size}, δ = {self.delta:g}",
            self.report.mean_kl,
            self.critical_epsilon.estimate,
            self.verdict,
            self.epsilon,
        )

    def summary(self, max_latents: int | None = 20) -> RenderableType:
        """Give the printed report, for ``rich.print``.

        It has at most ``max_latents`` rows: one half is for the latents with the largest mean KL, the other
        for those with the smallest. None gives every latent a row.
        """
        if max_latents is not None:
            max_latents = check_integer("CollapseAt.summary", "max_latents", max_latents, 0)
        report = self.report
        return _tables.Summary(
            epsilon=self.epsilon,
            delta=self.delta,
            num_samples=report.num_samples,
            is_wider_than_prior=report.is_wider_than_prior,
            gap=self.critical_gap,
            nan=report.nan > 0,
            infinite=report.infinite > 0,
            mean_kl=report.mean_kl,
            critical=self.critical_epsilon,
            verdict=self.verdict,
            test=self.collapse_test(),
            active=report.active_units(),
            kinds=report.classification(),
        ).render(max_latents)

    @cached_property
    def _below(self) -> tuple[_Ints, _Ints]:
        """Bounds of the number of samples below ε, (K,) each."""
        low, high = self.report._count_below(np.array([self.epsilon]))
        return low[:, 0], high[:, 0]

    def _columns(self) -> dict[str, list[Any]]:
        report, critical = self.report, self.critical_epsilon
        collapsed = self.verdict.collapsed.astype(object)
        collapsed[~self.verdict.decided] = None
        counts = {
            f"count_below_{threshold}": count
            for threshold, count in zip(report.thresholds.tolist(), report.counts.T, strict=True)
        }
        columns = {
            "collapsed": collapsed,
            "collapse_test": self.collapse_test(),
            "critical_epsilon": critical.estimate,
            "critical_epsilon_lower": critical.lower,
            "critical_epsilon_upper": critical.upper,
            "mean_kl": report.mean_kl,
            "kl_variance": report.kl_variance,
            "min_kl": report.min_kl,
            "max_kl": report.max_kl,
            "active": report.active_units(),
            "classification": report.classification(),
            "mean_of_mean": report.mean_of_mean,
            "variance_of_mean": report.variance_of_mean,
            "mean_variance": report.mean_variance,
            "variance_of_variance": report.variance_of_variance,
            "infinite": report.infinite,
            "nan": report.nan,
            **counts,
        }
        return {name: column.tolist() for name, column in columns.items()}

    def __rich__(self) -> RenderableType:
        return self.summary()

    def __str__(self) -> str:
        text = io.StringIO()
        # in a notebook rich would display the text rather than write it
        Console(file=text, width=110, color_system=None, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the printed report where a notebook or IPython shows a value."""
        printer.text(str(self))

    def __repr__(self) -> str:
        report = self.report
        return (
            f"CollapseAt(epsilon={self.epsilon}, delta={self.delta}, "
            f"num_samples={report.num_samples}, latent_dim={report.latent_dim})"
        )


def clopper_pearson(low: _Ints, high: _Ints, total: _Ints | int, level: float) -> Interval:
    """Give the confidence interval of a probability; between ``low`` and ``high`` of all trials came true."""
    tail = (1 - level) / 2
    below = _beta_quantile(betaincinv, np.maximum(low, 1), total - low + 1, tail)
    above = _beta_quantile(betainccinv, high + 1, np.maximum(total - high, 1), tail)
    return Interval(np.where(low > 0, below, 0.0), np.where(high < total, above, 1.0))


def _strict(epsilons: _Floats) -> _Floats:
    """Give the bounds that a counted KL is strictly below."""
    return np.where(epsilons == 0, _TINY, epsilons)


def _unstrict(knots: _Floats) -> _Floats:
    """Undo `_strict`."""
    return np.where(knots == _TINY, 0.0, knots)


def _cumulate(histogram: _Ints, infinite: _Ints, counts: _Ints, thresholds: _Floats) -> tuple[_Floats, _Ints]:
    """Give the values (Q,) at which the number of samples below is known, and these numbers, (K, Q)."""
    values = np.concatenate([histogram_edges().numpy(), _strict(thresholds)])
    order = np.argsort(values, kind="stable")
    values = values[order]
    is_new = np.diff(values, prepend=-1) > 0  # an edge may be a threshold
    below = np.empty((len(histogram), np.count_nonzero(is_new)), np.int64)
    for latents in blocks(len(below)):
        at_edges = np.pad(histogram[latents].cumsum(-1), ((0, 0), (1, 0)))
        at_edges[:, -1] -= infinite[latents]
        at_values = np.concatenate([at_edges, counts[latents]], -1)[:, order]
        more = np.diff(at_values)
        wrong = np.argwhere((more < 0) | (more > 0) & ~is_new[1:])
        if len(wrong):
            latent, i = wrong[0]
            (first, second), (num_first, num_second) = values[i : i + 2], at_values[latent, i : i + 2]
            raise ValueError(
                f"{_NAME}: statistics must be counts at these thresholds, got {num_first} samples below "
                f"{first:g} nats and {num_second} below {second:g} in latent {latents.start + latent}"
            )
        below[latents] = at_values[:, is_new]
    return values[is_new], below


def blocks(latent_dim: int) -> Iterator[slice]:
    """Give some latents at a time: an array with a number for each latent and each edge may be large."""
    return (slice(first, first + 4096) for first in range(0, latent_dim, 4096))


def _allowed(delta: float, num_samples: int | _Ints) -> _Ints:
    """How many of so many samples may have a larger KL; minus one where there is no sample."""
    # δ and the product are rounded: where δN is an integer, not to fall below it however large N is
    allowed: _Floats = np.floor(delta * np.asarray(num_samples) * (1 + 2.0**-51) + 1e-9)
    at_most: _Ints = np.minimum(allowed.astype(np.int64), np.asarray(num_samples) - 1)
    return at_most


def _beta_quantile(inverse: Callable[..., _Floats], a: _Ints, b: _Ints, tail: float) -> _Floats:
    # SciPy's is wrong, for a large b, where a is 1000 to the bit: next to it, it is right
    quantile: _Floats = inverse(np.nextafter(a, np.inf), np.nextafter(b, np.inf), tail)
    return quantile


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    copy = np.ascontiguousarray(array).copy()
    copy.setflags(write=False)
    return copy


def _check_all(caller: str, name: str, values: ArrayLike, **bounds: float) -> _Floats:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{caller}: {name} must have one dimension, got shape {array.shape}")
    return np.array([check_number(caller, name, value, **bounds) for value in array.tolist()], np.float64)


def _check_shapes(statistics: LatentStatistics, num_thresholds: int) -> None:
    """Check that these are the arrays of one model's statistics at so many thresholds."""
    if not isinstance(statistics, LatentStatistics):
        raise TypeError(f"{_NAME}: statistics must be LatentStatistics, got {type(statistics).__name__}")
    models, latent_dim = tuple(statistics.nan.shape[:-1]), statistics.nan.numel()
    if models:
        raise ValueError(
            f"{_NAME}: statistics must be of one model, got leading dimensions {models}; "
            "LatentStatistics(*(part[index] for part in statistics)) takes one"
        )
    if not latent_dim:
        raise ValueError(f"{_NAME}: statistics must be of at least one latent, got K=0")
    if statistics.histogram.shape == (latent_dim, 0):
        raise ValueError(f"{_NAME}: statistics must have a histogram, got those of histogram=False")
    like = collapse_statistics(torch.empty(0, 1), torch.empty(0, 1), [0.0] * num_thresholds)
    for name, part, of_one in zip(statistics._fields, statistics, like, strict=True):
        shape = (latent_dim, *of_one.shape[1:])
        if part.dtype != of_one.dtype:
            raise TypeError(f"{_NAME}: statistics.{name} must be {of_one.dtype}, got {part.dtype}")
        if part.shape != shape:
            hint = f" with the {num_thresholds} thresholds" if name == "counts" else ""
            raise ValueError(
                f"{_NAME}: statistics.{name} must have shape {shape}{hint}, got {tuple(part.shape)}"
            )
        if name in ("infinite", "nan") and (part < 0).any():
            raise ValueError(f"{_NAME}: statistics.{name} must not be negative, got {part.min()}")
