"""What the statistics of a set of posteriors say about their collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.console import RenderableType
from torch import Tensor

from lineavae._arguments import check_number
from lineavae._paper import DELTA, EPSILON, LEVEL
from lineavae._printing import Printed
from lineavae.collapse import _document, _plots
from lineavae.collapse._counts import blocks, cumulate, frozen, num_allowed, strict, unstrict
from lineavae.collapse._posterior import is_wider_than_prior
from lineavae.collapse.at import CollapseAt
from lineavae.collapse.verdicts import CollapseSurface, Interval
from lineavae.ops import LatentStatistics, collapse_statistics, histogram_edges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]

_NAME = "CollapseReport"


class CollapseReport(Printed):
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
    has_moments : bool
        Whether the moments below are known: not where KL values were given alone, by
        `CollapseStatistics.update_kl`. They are NaN then, and what needs them raises a ValueError.
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

    thresholds: _Floats
    counts: _Ints
    infinite: _Ints
    nan: _Ints
    mean_kl: _Floats
    kl_variance: _Floats
    min_kl: _Floats
    max_kl: _Floats
    mean_of_mean: _Floats
    variance_of_mean: _Floats
    mean_variance: _Floats
    variance_of_variance: _Floats

    def __init__(self, statistics: LatentStatistics, thresholds: Sequence[float] | Tensor) -> None:
        if isinstance(thresholds, Tensor):
            if thresholds.dtype != torch.float64:
                raise TypeError(f"{_NAME}: thresholds must be float64, got {thresholds.dtype}")
            thresholds = thresholds.tolist()
        checked = _check_all(_NAME, "thresholds", thresholds, at_least=0)
        _check_shapes(statistics, len(checked))
        counts, histogram, moments, minimum, maximum, infinite, nan = (
            part.cpu().numpy() for part in statistics
        )
        known = histogram.sum(-1)
        means, squares = moments[:, 1::2].T, moments[:, 2::2].T / np.maximum(known, 1)
        squares[1:, np.isnan(means[2])] = np.nan  # of posteriors that are not known
        columns = (means[0], squares[0], minimum, maximum, means[1], squares[1], means[2], squares[2])
        some = {
            name: np.where(known > 0, column, np.nan)
            for name, column in zip(_document.MOMENTS, columns, strict=True)
        }
        self._fill(_document.Parts(checked, counts, histogram, infinite, nan, some))

    def _fill(self, parts: _document.Parts) -> None:
        thresholds, counts, histogram, infinite, nan, moments = parts
        self.thresholds = frozen(thresholds)
        self.counts, self.infinite, self.nan = map(frozen, (counts, infinite, nan))
        self._known: _Ints = histogram.sum(-1)  # N_j
        num_samples = self._known + nan
        if (num_samples != num_samples[0]).any():
            raise ValueError(
                f"{_NAME}: statistics must be of the same samples for every latent, got "
                f"{num_samples.min()} to {num_samples.max()} samples"
            )
        self.num_samples, self.latent_dim = int(num_samples[0]), len(nan)
        for name, column in moments.items():
            setattr(self, name, frozen(column))
        self.has_moments = not np.isnan(self.mean_variance[self._known > 0]).any()
        self._knots, self._below = cumulate(histogram, infinite, counts, self.thresholds)
        self._check_ends()

    def save(self, path: str | Path) -> None:
        """Write the report, atomically, as JSON: `CollapseAt.to_dict` at the paper's (ε, δ).

        It has the counts, the histogram and the moments, exact, so that `load` gives the same report:
        every verdict, curve and figure can be had of it again, at any (ε, δ).
        """
        self.at().to_json(path)

    @classmethod
    def load(cls, path: str | Path) -> CollapseReport:
        """Read what `save`, `CollapseAt.to_json` or ``lineavae collapse --json`` wrote.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is something else, or damaged; the message names it.

        Examples
        --------
        >>> import tempfile, torch
        >>> from lineavae.collapse import CollapseReport, CollapseStatistics
        >>> statistics = CollapseStatistics(latent_dim=3)
        >>> statistics.update(torch.eye(3), torch.zeros(3, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     statistics.compute().save(f"{folder}/epoch=9.json")
        ...     CollapseReport.load(f"{folder}/epoch=9.json")
        CollapseReport(num_samples=3, latent_dim=3)
        """
        path = Path(path)
        path.open("rb").close()  # of what cannot be read, the error is Python's
        try:
            document = _document.read(path, _document.REPORT)
        except ValueError as error:
            raise ValueError(f"{_NAME}.load: {error}") from error
        try:
            return cls._of(document)
        except _document.DAMAGE as error:
            raise ValueError(f"{_NAME}.load: {path} is damaged ({type(error).__name__}: {error})") from error

    @classmethod
    def _of(cls, document: Mapping[str, Any]) -> CollapseReport:
        report = cls.__new__(cls)
        parts = _document.parse(document)
        thresholds = _check_all(_NAME, "thresholds", parts.thresholds, at_least=0)
        report._fill(parts._replace(thresholds=thresholds))
        return report

    def at(self, epsilon: float = EPSILON, delta: float = DELTA, level: float = LEVEL) -> CollapseAt:
        """Give what the report says at one pair (ε, δ): verdicts, intervals, tables, figures.

        Parameters
        ----------
        epsilon
            Threshold ε in nats, finite and >= 0; by default the paper's, 0.01.
        delta
            Fraction δ of the samples that may have a larger KL, >= 0 and < 1; by default the paper's, 0.01.
        level
            Confidence level of what is said of the population, > 0 and < 1.
        """
        return CollapseAt(self, epsilon, delta, level)

    @property
    def histogram(self) -> _Ints:
        """Number of samples in each bin of `lineavae.ops.histogram_edges`, (K, 642), int64."""
        histogram = np.empty((self.latent_dim, len(histogram_edges()) - 1), np.int64)
        for latents in blocks(self.latent_dim):
            histogram[latents] = self._histogram(latents)
        histogram.setflags(write=False)
        return histogram

    def _histogram(self, latents: slice) -> _Ints:
        """Give that of some latents: with thousands of them one is large, and kept as the counts below."""
        edges = np.isin(self._knots, histogram_edges().numpy())
        histogram = np.diff(self._below[latents, edges])
        histogram[:, -1] += self.infinite[latents]
        return histogram

    def active_units(self, threshold: float = 0.01) -> _Bools:
        """Tell whose posterior mean varies, (K,): Var_x(E_q[z_j]) >= threshold (Burda et al. 2016).

        The variance is that of the means as they were given: float32 near 10⁷ has steps of 1, and whatever
        varies by less has a variance of 0, or of up to 1/4, there.
        """
        self._check_moments("active_units")
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
        self._check_moments("classification")
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

    def _check_ends(self) -> None:
        """Check that the smallest and the largest KL lie where they are counted."""
        ends = np.append(self._knots, np.inf)
        for latents in blocks(self.latent_dim):
            below, known = self._below[latents], self._known[latents]
            for name, rank in (("min_kl", np.minimum(known, 1)), ("max_kl", known)):
                values = getattr(self, name)[latents]
                knot = (below < rank[:, None]).sum(-1)
                fits = (ends[knot - 1] <= values) & ((values < ends[knot]) | (knot == len(self._knots)))
                wrong = np.flatnonzero(~fits & (known > 0))
                if len(wrong):
                    raise ValueError(
                        f"{_NAME}: {name} must lie where it is counted, got {values[wrong[0]]} nats in "
                        f"latent {latents.start + wrong[0]}"
                    )

    def _check_moments(self, method: str) -> None:
        if not self.has_moments:
            raise ValueError(
                f"{_NAME}.{method}: means and variances of the posteriors must be known, but KL values were "
                "given alone (update_kl)"
            )

    def _order_statistic(self, rank: _Ints) -> Interval:
        """Give bounds of the KL of each latent that is number ``rank``, (K,), of those that are not NaN.

        Below the first is zero, for so small a KL may be, and infinity above the last.
        """
        knot = (self._below < rank[:, None]).sum(-1)
        lower = np.maximum(self._knots[knot - 1], self.min_kl)
        upper = np.minimum(unstrict(self._knots)[np.minimum(knot, len(self._knots) - 1)], self.max_kl)
        lower = np.where(rank == self._known, self.max_kl, lower)
        upper = np.where(rank == 1, self.min_kl, upper)
        beyond = np.inf if self.num_samples else np.nan
        lower, upper = (
            np.select([rank < 1, rank > self._known], [0, beyond], bound) for bound in (lower, upper)
        )
        return Interval(lower, upper)

    def _count_below(self, epsilons: _Floats) -> tuple[_Ints, _Ints]:
        """Give bounds of the number of samples below each ε, (K, P) each."""
        epsilons = strict(epsilons)
        low = self._below[:, np.searchsorted(self._knots, epsilons, "right") - 1]
        high = self._below[:, np.searchsorted(self._knots, epsilons, "left")]
        known, smallest, largest = self._known[:, None], self.min_kl[:, None], self.max_kl[:, None]
        low = np.where(epsilons > largest, known, np.maximum(low, epsilons > smallest))
        high = np.where(epsilons <= smallest, 0, np.minimum(high, known - (epsilons <= largest)))
        return low, high + self.nan[:, None]

    def _collapsed(self, below: _Ints, delta: float) -> _Bools:
        """Which latents are collapsed if so many samples are below ε, (K, ...)."""
        return self.num_samples - below <= num_allowed(delta, self.num_samples)

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

    def __repr__(self) -> str:
        return f"CollapseReport(num_samples={self.num_samples}, latent_dim={self.latent_dim})"


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
