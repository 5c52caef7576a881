"""Mutual information of data and latents, with the aggregate posterior of a whole data set.

Each row n of the data is a component of q(z) = (1/N) Σ_n q(z|x_n). The log densities of a block of draws z
under a block of components are two matrix products, of z with m/v and of z² with -1/2v; a running logsumexp
joins the blocks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lineavae._arguments import check_integer
from lineavae.collapse._posterior import (
    Array,
    Posterior,
    as_posterior,
    is_wider_than_prior,
    warn_of_width,
)
from lineavae.ops import gaussian_kl

Method = Literal["full", "minibatch"]

_NAME = "mutual_information"

# Rows and columns of a block of log densities: 8 MB in float64.
_BLOCK_ROWS = 1024

# Where one latent's z²/v is beyond it, the cancellation in z²/v - 2zm/v + m²/v costs more than 1e-11 nats.
_LARGEST_SQUARE = 1e5

# Beyond them exp(-logvar) or a square overflows float64.
_LARGEST_MEAN, _LARGEST_LOGVAR = 1e150, 700.0

_ROWS_PER_DIMENSION = 2000

_LOG_2PI = math.log(2 * math.pi)


class InformationBoundWarning(UserWarning):
    """An estimate of the mutual information is near its upper bound, and so a lower bound only.

    Examples
    --------
    >>> import warnings
    >>> import torch
    >>> from lineavae.collapse import InformationBoundWarning, mutual_information
    >>> mean = 100 * torch.arange(200.0)[:, None]  # z tells which of the rows x is
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", InformationBoundWarning)
    ...     information = mutual_information(mean, torch.zeros(200, 1))
    >>> information.value, information.upper_bound
    (5.298..., 5.298...)
    """


@dataclass(frozen=True, eq=False)
class MutualInformation:
    """Estimate of I_q(x; z) in nats, as `mutual_information` returns it.

    Examples
    --------
    >>> import torch
    >>> from lineavae.collapse import mutual_information
    >>> information = mutual_information(torch.ones(100, 1), torch.zeros(100, 1))
    >>> round(information.value, 9) + 0.0, information.kl  # the same posterior for every x, not the prior
    (0.0, 0.5)
    >>> round(information.marginal_kl, 9)
    0.5
    """

    value: float
    """The estimate of I_q(x; z)."""
    standard_error: float
    """Standard error of the value, over rows."""
    upper_bound: float
    """What the value cannot exceed: log N, the log of a minibatch's rows where those are the components."""
    kl: float
    """Mean of KL(q(z|x) ‖ p(z)) over all rows, p(z) = N(0, I); exact."""
    num_rows: int
    """Rows x that the value is a mean over."""
    per_dimension: NDArray[np.float64] | None = None
    """The estimate of I_q(x; z_j) of each latent, (K,), where it was asked for."""
    per_dimension_standard_error: NDArray[np.float64] | None = None
    """Its standard error, (K,)."""
    per_dimension_num_rows: int | None = None
    """Rows x that it is a mean over."""

    @property
    def marginal_kl(self) -> float:
        """KL(q(z) ‖ p(z)), the rest of the split E KL = I + KL(q(z) ‖ p(z)) of Hoffman and Johnson (2016)."""
        return self.kl - self.value


@torch.no_grad()
def mutual_information(
    mean: Posterior,
    logvar: Array | None = None,
    num_draws: int = 1,
    generator: torch.Generator | None = None,
    *,
    variance: Array | None = None,
    std: Array | None = None,
    event_dim: int | None = None,
    num_rows: int | None = None,
    per_dimension: bool = False,
    method: Method = "full",
    batch_size: int = 128,
) -> MutualInformation:
    """Mutual information I_q(x; z) = E_x E_q(z|x) [log q(z|x) - log q(z)] of diagonal Gaussian posteriors.

    The aggregate posterior is that of the whole data set, q(z) = (1/N) Σ_n q(z|x_n). The estimate cannot
    exceed log N, and is biased downwards where the true value comes near it.

    Parameters
    ----------
    mean
        Posterior means of all rows, (N, K) with N >= 2, float64, float32, bfloat16 or float16: tensors, or
        arrays of NumPy or of any library that has ``__dlpack__`` or ``__array__``. Everything is computed in
        float64, on their device. A ``torch.distributions.Normal``, or an ``Independent`` of one, is a whole
        posterior, with no spread beside it.
    logvar
        The posterior's log-variances, of the shape and dtype of mean; or else ``variance`` or ``std``.
    num_draws
        Draws of z per row.
    generator
        Source of the draws, and of the rows where they are a subset, on the device of mean; torch's global
        one if None.
    variance, std
        The posterior's variances or standard deviations, in place of logvar.
    event_dim
        Number of last dimensions that are the latents, as of an ``Independent``; it must be given where there
        are more than two dimensions.
    num_rows
        How many rows x, drawn without replacement, the means are over; the components of q(z) are always all
        N. By default all N, and at most 2000 for the values per dimension.
    per_dimension
        Whether to estimate I_q(x; z_j) of each latent too. This computes N K ``num_rows`` exponentials; no
        matrix product does it faster.
    method
        "minibatch" takes for the components of q(z) the rows of x's own minibatch only, which are consecutive
        rows of the data. That is what others report (``calc_mi`` of He et al. 2019); it cannot exceed log B,
        whatever the posteriors tell of x.
    batch_size
        Rows B of a minibatch; the full method has none.

    Returns
    -------
    MutualInformation
        The estimate with its standard error and bound, and its part in the KL of the ELBO.

    Warns
    -----
    InformationBoundWarning
        The estimate is within 1 nat of its upper bound, and so no more than a lower bound of the true value.
    WidePosteriorWarning
        The log-variances look like variances or standard deviations, see
        `CollapseReport.is_wider_than_prior`.

    Raises
    ------
    TypeError
        An argument is of another type or dtype, or on a device without float64.
    ValueError
        A shape, a device or a number does not fit; there is not exactly one spread; a mean is not finite or
        beyond 1e150 in magnitude; a log-variance is not finite or beyond 700.

    Notes
    -----
    A draw is z = m + √v ε with ε = ``torch.randn(num_rows, K, generator=generator, dtype=torch.float64)``,
    one such tensor for each of the ``num_draws``; with a subset of rows, their choice comes first. Both
    densities are taken at this z, so that posteriors which are all alike give zero and none can exceed the
    bound. (``calc_mi`` takes the entropy of q(z|x) in closed form, which has the same expectation.)

    Log densities are accurate to 1e-9 nats: latents whose posteriors are so narrow that the products would
    lose these digits are summed by differences, which takes longer. Beyond the inputs the memory holds a few
    arrays (num_rows, K) in float64, such as z, and a few blocks of 1024 x 1024 numbers; nothing is N x N.

    References
    ----------
    He, Spokoyny, Neubig and Berg-Kirkpatrick (2019). Lagging inference networks and posterior collapse in
    variational autoencoders. ICLR.
    Hoffman and Johnson (2016). ELBO surgery: yet another way to carve up the variational evidence lower
    bound. NIPS workshop on advances in approximate Bayesian inference.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from lineavae.collapse import mutual_information
    >>> generator = torch.Generator().manual_seed(0)
    >>> mean = torch.randn(2000, 2, generator=generator) * torch.tensor([0.9, 0.0])
    >>> logvar = torch.tensor([0.19, 1.0]).log().expand(2000, 2)
    >>> information = mutual_information(mean, logvar, generator=generator, per_dimension=True)
    >>> -0.5 * math.log(0.19)  # what the first latent tells of x; the second has collapsed
    0.8303...
    >>> abs(information.value - 0.83) < 3 * information.standard_error
    True
    >>> information.per_dimension.round(1) + 0.0
    array([0.8, 0. ])
    """
    means, logvars = as_posterior(_NAME, mean, logvar, variance, std, event_dim)
    _check_posteriors(means, logvars)
    num_draws = check_integer(_NAME, "num_draws", num_draws, 1)
    if num_rows is not None:
        num_rows = check_integer(_NAME, "num_rows", num_rows, 2)
        if num_rows > len(means):
            raise ValueError(f"{_NAME}: num_rows must be at most the N={len(means)} rows, got {num_rows}")
    if method not in get_args(Method):
        raise ValueError(f"{_NAME}: method must be one of {get_args(Method)}, got {method!r}")
    batch_size = check_integer(_NAME, "batch_size", batch_size, 2)

    num_components = min(batch_size, len(means)) if method == "minibatch" else len(means)
    if _is_wide(means, logvars):
        warn_of_width(_NAME)
    rows = _choose_rows(means, num_rows or len(means), generator)
    (value,), (error,) = _estimate(means, logvars, rows, num_components, [slice(None)], num_draws, generator)
    result = MutualInformation(value, error, math.log(num_components), _mean_kl(means, logvars), len(rows))
    if result.value > result.upper_bound - 1:
        warnings.warn(
            f"{_NAME}: {result.value:.4g} nats are within 1 nat of the upper bound log {num_components} = "
            f"{result.upper_bound:.4g}; the mutual information may be anything from there on",
            InformationBoundWarning,
            stacklevel=3,
        )
    if not per_dimension:
        return result
    rows = _choose_rows(means, num_rows or min(_ROWS_PER_DIMENSION, len(means)), generator)
    latents = [slice(j, j + 1) for j in range(means.shape[1])]
    values, errors = _estimate(means, logvars, rows, num_components, latents, num_draws, generator)
    return replace(
        result,
        per_dimension=np.array(values),
        per_dimension_standard_error=np.array(errors),
        per_dimension_num_rows=len(rows),
    )


def _choose_rows(mean: Tensor, num_rows: int, generator: torch.Generator | None) -> Tensor:
    """Choose all rows, or a random subset; their indices ascend."""
    if num_rows == len(mean):
        return torch.arange(num_rows, device=mean.device)
    return torch.randperm(len(mean), generator=generator, device=mean.device)[:num_rows].sort().values


def _mean_kl(mean: Tensor, logvar: Tensor) -> float:
    blocks = _blocks(mean, logvar)
    return sum(gaussian_kl(m.double(), lv.double()).sum().item() for m, lv in blocks) / len(mean)


def _is_wide(mean: Tensor, logvar: Tensor) -> bool:
    moments = torch.zeros(3, mean.shape[1], dtype=torch.float64, device=mean.device)
    for block_mean, block_logvar in _blocks(mean, logvar):
        variance = block_logvar.double().exp()
        squares = (block_mean.double().square(), variance, variance.square())
        moments += torch.stack([part.sum(0) for part in squares]) / len(mean)
    square, variance, squared = moments
    spread = (squared - variance.square()).clamp(min=0)  # below zero by rounding alone
    return bool(is_wider_than_prior(*(part.cpu().numpy() for part in (square, variance, spread))))


def _blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor, _BLOCK_ROWS) for tensor in tensors), strict=True)


def _estimate(
    mean: Tensor,
    logvar: Tensor,
    rows: Tensor,
    num_components: int,
    latents: Sequence[slice],
    num_draws: int,
    generator: torch.Generator | None,
) -> tuple[list[float], list[float]]:
    """Mean over rows of log q(z|x) - log q(z), and its standard error, for each choice of latents."""
    total = torch.zeros(len(latents), len(rows), dtype=torch.float64, device=mean.device)
    for _ in range(num_draws):
        row_mean, row_logvar = mean[rows].double(), logvar[rows].double()
        noise = torch.randn(row_mean.shape, generator=generator, dtype=torch.float64, device=mean.device)
        z = row_mean + (0.5 * row_logvar).exp() * noise
        for chosen, sums in zip(latents, total, strict=True):
            sums += _log_normal(z[:, chosen], row_mean[:, chosen], row_logvar[:, chosen])
            sums -= _log_aggregate(z[:, chosen], mean[:, chosen], logvar[:, chosen], rows, num_components)
    total /= num_draws
    return total.mean(1).tolist(), (total.std(1) / math.sqrt(len(rows))).tolist()


def _log_aggregate(z: Tensor, mean: Tensor, logvar: Tensor, rows: Tensor, num_components: int) -> Tensor:
    """log q(z) with the components of each row's own batch of ``num_components`` consecutive rows, (R,)."""
    means, logvars = torch.split(mean, num_components), torch.split(logvar, num_components)
    sizes = torch.bincount(rows // num_components, minlength=len(means)).tolist()  # rows ascend
    batches = zip(torch.split(z, sizes), means, logvars, strict=True)
    return torch.cat([_log_mixture(*batch) for batch in batches if len(batch[0])])


def _log_mixture(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log (1/N) Σ_n N(z; m_n, diag v_n) in float64, (R, K), (N, K), (N, K) -> (R,)."""
    centre = z.mean(0)
    largest = (z - centre).abs().amax(0)
    narrow = largest.square() * logvar.amin(0).double().neg().exp() > _LARGEST_SQUARE
    # products keep more of their digits around the centre, differences would lose some to it
    centre = centre.masked_fill(narrow, 0)
    z = z - centre
    log_sum = z.new_full((len(z),), -math.inf)
    for block_mean, block_logvar in _blocks(mean, logvar):
        components = block_mean.double() - centre, block_logvar.double()
        for block_z, block_sum in _blocks(z, log_sum):
            log_density = _log_normal_of_pairs(block_z, *components, narrow)
            torch.logaddexp(block_sum, log_density.logsumexp(1), out=block_sum)
    return log_sum - math.log(len(mean))


def _log_normal_of_pairs(z: Tensor, mean: Tensor, logvar: Tensor, narrow: Tensor) -> Tensor:
    """log N(z_r; m_n, diag v_n) of every pair, (R, K), (N, K), (N, K) -> (R, N).

    ``narrow``, (K,), marks latents whose exponent is computed as a sum of squared differences.
    """
    precision = logvar.neg().exp()
    wide = ~narrow
    wide_z, wide_mean, wide_precision = z[:, wide], mean[:, wide], precision[:, wide]
    constant = -0.5 * ((logvar + _LOG_2PI).sum(1) + (wide_mean.square() * wide_precision).sum(1))
    slopes = torch.cat([wide_mean * wide_precision, -0.5 * wide_precision], 1)
    log_density = torch.addmm(constant, torch.cat([wide_z, wide_z.square()], 1), slopes.mT)
    for j in narrow.nonzero().flatten().tolist():
        log_density -= 0.5 * precision[:, j] * (z[:, j, None] - mean[:, j]).square()
    return log_density


def _log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; m, diag v), (..., K) -> (...)."""
    return -0.5 * ((z - mean).square() * logvar.neg().exp() + logvar + _LOG_2PI).sum(-1)


def _check_posteriors(mean: Tensor, logvar: Tensor) -> None:
    if mean.device.type == "mps":
        raise TypeError(f"{_NAME}: mean must be on a device that has float64, got mps; use .cpu()")
    if len(mean) < 2 or mean.shape[1] < 1:
        raise ValueError(
            f"{_NAME}: mean must have shape (N, K) with N >= 2 and K >= 1, got {tuple(mean.shape)}"
        )
    _check_magnitude("mean", mean, _LARGEST_MEAN)
    _check_magnitude("logvar", logvar, _LARGEST_LOGVAR)


def _check_magnitude(name: str, tensor: Tensor, largest: float) -> None:
    lowest, highest = (bound.item() for bound in tensor.aminmax())
    if not -largest <= lowest <= highest <= largest:  # with a NaN both are NaN
        good = tensor.isfinite() & (tensor.abs() <= largest)
        index = tuple((~good).nonzero()[0].tolist())
        raise ValueError(
            f"{_NAME}: {name} must be finite and at most {largest:g} in magnitude, "
            f"got {tensor[index].item()} at index {index}"
        )
