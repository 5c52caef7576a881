"""What a report gives: verdicts, bounds, gaps, curves, as named arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lineavae._paper import EPSILON

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]

DEFAULT_THRESHOLDS = (0.0, 0.001, EPSILON, 0.1, 1.0)  # nats, at which counts are exact

NO_GAP_BELOW = 0.001  # nats, below which no gap of critical ε tells anything

LIVE_ABOVE = 1.0  # nats: latents that all have at least this critical ε need no gap to be live


class Verdict(NamedTuple):
    """Which latents are collapsed, and of which that is known."""

    collapsed: _Bools
    """Latents that are collapsed for certain, (K,)."""
    decided: _Bools
    """Latents of which the statistics tell whether they are collapsed, (K,)."""


class Interval(NamedTuple):
    """Bounds of one number per latent, both included, (K,) each."""

    lower: _Floats
    upper: _Floats


class CriticalEpsilon(NamedTuple):
    """The critical ε of each latent in nats, (K,) each."""

    estimate: _Floats
    """The middle of the bounds, those of the samples whose KL is not NaN."""
    lower: _Floats
    upper: _Floats


class CriticalGap(NamedTuple):
    """The largest gap between the critical ε of the latents: any ε in it gives the same verdict.

    Examples
    --------
    >>> from lineavae.collapse import CriticalGap
    >>> gap = CriticalGap(num_below=47, num_above=3, lower=0.23, upper=2.9)
    >>> round(gap.ratio, 1), gap.is_clear
    (12.6, True)
    """

    num_below: int
    """Latents whose critical ε is below the gap: collapsed at any ε in it."""
    num_above: int
    """Latents whose critical ε is above the gap: not collapsed at any ε in it."""
    lower: float
    """Where the gap begins, in nats; the largest critical ε below."""
    upper: float
    """Where it ends, in nats; the smallest critical ε above."""

    @property
    def ratio(self) -> float:
        """The gap's end divided by its beginning, where less than 0.001 nats count as 0.001."""
        return float(gap_ratio(self.lower, self.upper))

    @property
    def is_clear(self) -> bool:
        """Whether the gap spans a factor of ten or more."""
        return self.ratio >= 10


class CollapseCurve(NamedTuple):
    """Collapsed latents in percent of all against ε."""

    epsilons: _Floats
    """Thresholds ε in nats, (P,), ascending where they were not given."""
    lower: _Floats
    """Percentage of the latents that are collapsed for certain, (P,)."""
    upper: _Floats
    """Percentage of the latents that are collapsed or that the statistics leave open, (P,)."""


class CollapseSurface(NamedTuple):
    """Collapsed latents in percent of all against ε and δ."""

    epsilons: _Floats
    """Thresholds ε in nats, (P,)."""
    deltas: _Floats
    """Fractions δ, (Q,)."""
    lower: _Floats
    """Percentage of the latents that are collapsed for certain, (P, Q)."""
    upper: _Floats
    """Percentage of the latents that are collapsed or that the statistics leave open, (P, Q)."""


def gap_ratio(begin: ArrayLike, end: ArrayLike) -> _Floats:
    """Divide ends by beginnings, where less than `NO_GAP_BELOW` counts as that."""
    ratio: _Floats = np.maximum(end, NO_GAP_BELOW) / np.maximum(begin, NO_GAP_BELOW)
    return ratio
