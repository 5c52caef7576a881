"""Counts of samples below thresholds: from histograms, and what they prove."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainccinv, betaincinv

from lineavae.collapse.verdicts import Interval
from lineavae.ops import histogram_edges

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

# the smallest float64 above zero: KL <= 0 is KL < _TINY, so that every comparison is strict
_TINY = np.nextafter(0.0, 1.0)


def clopper_pearson(low: _Ints, high: _Ints, total: _Ints | int, level: float) -> Interval:
    """Give the confidence interval of a probability; between ``low`` and ``high`` of all trials came true."""
    tail = (1 - level) / 2
    below = _beta_quantile(betaincinv, np.maximum(low, 1), total - low + 1, tail)
    above = _beta_quantile(betainccinv, high + 1, np.maximum(total - high, 1), tail)
    return Interval(np.where(low > 0, below, 0.0), np.where(high < total, above, 1.0))


def strict(epsilons: _Floats) -> _Floats:
    """Give the bounds that a counted KL is strictly below."""
    return np.where(epsilons == 0, _TINY, epsilons)


def unstrict(knots: _Floats) -> _Floats:
    """Undo `strict`."""
    return np.where(knots == _TINY, 0.0, knots)


def cumulate(histogram: _Ints, infinite: _Ints, counts: _Ints, thresholds: _Floats) -> tuple[_Floats, _Ints]:
    """Give the values (Q,) at which the number of samples below is known, and these numbers, (K, Q)."""
    values = np.concatenate([histogram_edges().numpy(), strict(thresholds)])
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
                f"CollapseReport: statistics must be counts at these thresholds, got {num_first} samples "
                f"below {first:g} nats and {num_second} below {second:g} in latent {latents.start + latent}"
            )
        below[latents] = at_values[:, is_new]
    return values[is_new], below


def blocks(latent_dim: int) -> Iterator[slice]:
    """Give some latents at a time: an array with a number for each latent and each edge may be large."""
    return (slice(first, first + 4096) for first in range(0, latent_dim, 4096))


def num_allowed(delta: float, num_samples: int | _Ints) -> _Ints:
    """How many of so many samples may have a larger KL; minus one where there is no sample."""
    # δ and the product are rounded: where δN is an integer, not to fall below it however large N is
    allowed: _Floats = np.floor(delta * np.asarray(num_samples) * (1 + 2.0**-51) + 1e-9)
    at_most: _Ints = np.minimum(allowed.astype(np.int64), np.asarray(num_samples) - 1)
    return at_most


def _beta_quantile(inverse: Callable[..., _Floats], a: _Ints, b: _Ints, tail: float) -> _Floats:
    # SciPy's is wrong, for a large b, where a is 1000 to the bit: next to it, it is right
    quantile: _Floats = inverse(np.nextafter(a, np.inf), np.nextafter(b, np.inf), tail)
    return quantile


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    copy = np.ascontiguousarray(array).copy()
    copy.setflags(write=False)
    return copy
