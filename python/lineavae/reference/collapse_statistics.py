"""Statistics of the KL of each latent over many posteriors: how collapsed it is at any threshold.

The histogram has one bin below 2⁻²⁴ nats, sixteen bins of equal width per octave up to 2¹⁶ nats, and one
above: those of a float's exponent and leading four bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from lineavae.reference.gaussian_kl import gaussian_kl_per_dimension

_FIRST_OCTAVE, _END_OCTAVE = -24, 16
_BINS_PER_OCTAVE = 16
NUM_BINS = (_END_OCTAVE - _FIRST_OCTAVE) * _BINS_PER_OCTAVE + 2
NUM_MOMENTS = 7


class LatentStatistics(NamedTuple):
    """Statistics of N posteriors, per model and latent; those of disjoint sets of posteriors merge.

    A KL that is infinite is above every threshold. One that is NaN is unknown: ``nan`` counts it, and nothing
    else does. Minimum and maximum merge by taking the smaller and the larger, moments by
    `lineavae.ops.merge_moments`, all others by adding.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import collapse_statistics
    >>> mean = torch.tensor([[1.0, 0.0], [3.0, torch.nan]])
    >>> statistics = collapse_statistics(mean, torch.zeros(2, 2), thresholds=[0.01])
    >>> statistics.minimum, statistics.nan
    (tensor([0.5000, 0.0000], dtype=torch.float64), tensor([0, 1]))
    >>> statistics.moments[:, :2]  # the number of elements that are known, and the mean KL
    tensor([[2.0000, 2.5000],
            [1.0000, 0.0000]], dtype=torch.float64)
    """

    counts: Tensor
    """How many KL values are below each threshold, (*models, K, E), int64."""
    histogram: Tensor
    """How many KL values are in each bin of `histogram_edges`, (*models, K, 642), int64; infinite ones are in
    the last."""
    moments: Tensor
    """The number of elements whose KL is not NaN, then mean and sum of squared deviations from it, of the KL,
    of the posterior mean and of the posterior variance, (*models, K, 7), float64. Where a value is infinite
    the sum is, and the mean, which is NaN if there are values of both signs."""
    minimum: Tensor
    """The smallest KL, (*models, K), float64; infinite also where there is none."""
    maximum: Tensor
    """The largest KL, (*models, K), float64; minus infinite where there is none."""
    infinite: Tensor
    """How many KL values are infinite, (*models, K), int64."""
    nan: Tensor
    """How many KL values are NaN, (*models, K), int64."""


# torch.export saves what a model returns by this name
_pytree._register_namedtuple(LatentStatistics, serialized_type_name="lineavae.ops.LatentStatistics")


def histogram_edges() -> Tensor:
    """Edges of the histogram's bins in nats, (643,), float64: bin b counts edges[b] <= KL < edges[b + 1].

    The last bin counts infinite KL values as well.

    Examples
    --------
    >>> from lineavae.ops import histogram_edges
    >>> edges = histogram_edges()
    >>> edges[0].item(), edges[1].item() == 2**-24, edges[-2].item(), edges[-1].item()
    (0.0, True, 65536.0, inf)
    """
    octaves = torch.arange(_FIRST_OCTAVE, _END_OCTAVE, dtype=torch.float64).exp2()
    steps = 1 + torch.arange(_BINS_PER_OCTAVE, dtype=torch.float64) / _BINS_PER_OCTAVE
    inner = (octaves[:, None] * steps).flatten()
    return torch.cat([inner.new_zeros(1), inner, inner.new_tensor([2.0**_END_OCTAVE, torch.inf])])


def collapse_statistics(
    mean: Tensor, logvar: Tensor, thresholds: Sequence[float] | Tensor, histogram: bool = True
) -> LatentStatistics:
    """Statistics of (*models, N, K) posteriors with thresholds (E,) in nats.

    KL < ε is counted for ε > 0, and KL <= ε at ε = 0.
    """
    kl = gaussian_kl_per_dimension(mean, logvar)
    return latent_statistics(kl, (kl, mean, logvar.double().exp()), thresholds, histogram)


def latent_statistics(
    kl: Tensor, values: Sequence[Tensor], thresholds: Sequence[float] | Tensor, histogram: bool = True
) -> LatentStatistics:
    """Statistics of KL values, (*models, N, K), and the moments of some values where these are not NaN."""
    kl = kl.double().mT.contiguous()  # (*models, K, N)
    known = ~kl.isnan()
    count = known.sum(-1)
    counts = count.new_zeros((*count.shape, len(thresholds)))
    for i, threshold in enumerate(thresholds):
        counts[..., i] = ((kl < threshold) | (kl == 0) & (threshold == 0)).sum(-1)
    bins = count.new_zeros((*count.shape, NUM_BINS if histogram else 0))
    if histogram:
        edges = histogram_edges()[:-1].to(kl.device).expand(*count.shape, -1).contiguous()
        below = torch.searchsorted(kl.where(known, torch.inf).sort(-1).values, edges)
        bins = torch.cat([below, count[..., None]], -1).diff()
    moments = [count.double()]
    for value in values:
        value = value.double().mT.contiguous()
        average = value.where(known, 0).sum(-1) / count.clamp(min=1)
        squares = (value - average[..., None]).where(known, 0).square().sum(-1)
        moments += [average, squares.where(average.isfinite(), torch.inf)]
    none = kl.new_full((*count.shape, 1), torch.inf)
    return LatentStatistics(
        counts=counts,
        histogram=bins,
        moments=torch.stack(moments, -1),
        minimum=torch.cat([kl.where(known, torch.inf), none], -1).amin(-1),
        maximum=torch.cat([kl.where(known, -torch.inf), -none], -1).amax(-1),
        infinite=kl.isinf().sum(-1),
        nan=kl.shape[-1] - count,
    )


def merge_moments(moments: Tensor) -> Tensor:
    """Merge moments of disjoint sets of posteriors, (R, ..., 7) -> (..., 7), by Chan's formula, in order.

    A mean that is infinite stays so, and its squared deviations.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import collapse_statistics, merge_moments
    >>> mean, logvar = torch.randn(2, 10, 4, dtype=torch.float64)
    >>> whole = collapse_statistics(mean, logvar, [0.01]).moments
    >>> parts = [collapse_statistics(mean[i::2], logvar[i::2], [0.01]).moments for i in range(2)]
    >>> torch.allclose(merge_moments(torch.stack(parts)), whole)
    True
    """
    merged, *others = moments.unbind()
    for other in others:
        count, mean, squares = merged[..., :1], merged[..., 1::2], merged[..., 2::2]
        more = other[..., :1]
        share = more / (count + more).clamp(min=1)
        gap = other[..., 1::2] - mean
        finite = gap.isfinite()
        squares = squares + other[..., 2::2] + gap * (share * count) * gap
        mean = torch.where(finite, mean + share * gap, (1 - share) * mean + share * other[..., 1::2])
        both = torch.stack([mean, squares.where(finite, torch.inf)], -1).flatten(-2)
        merged = torch.cat([count + more, both], -1)
    return merged
