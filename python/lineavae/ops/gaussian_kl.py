"""KL divergence of diagonal Gaussian posteriors to the standard normal prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lineavae import _ext, reference
from lineavae.ops._differentiable import differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import (
    broadcasts,
    check_event_dim,
    check_posterior,
    check_tensors,
    one_dtype,
    widen,
)
from lineavae.ops._weights import check_latent_weight, per_latent, scale

_ext.load()


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor,
    *,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    kl_weight: Tensor | float = 1.0,
    event_dim: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) of each posterior, or that to another diagonal prior, in nats.

    ½ Σ_j w_j (m_j² + v_j - log v_j - 1), each term free of cancellation: exactly 0 at the prior, and accurate
    to rounding however close to it.

    Parameters
    ----------
    mean, logvar
        Posterior means and log-variances, (N, K) or (*batch, *event), of one dtype: float64, float32,
        bfloat16 or float16.
    prior_mean, prior_logvar
        Means and log-variances of the prior, by default 0: of the dtype of mean, and of its shape or one that
        broadcasts to it, so that a learned prior is (K,) and one that is conditional (N, K). They have
        gradients. Each costs some elementwise operations of torch.
    kl_weight
        Weight of the KL: a number, or a tensor () or (K,), then w_j for each latent; with ``event_dim`` one
        that broadcasts to the event. Not differentiable. Under `torch.compile` a weight that changes at every
        step should be a tensor, whose values are looked at with ``check_finite`` only.
    event_dim
        How many trailing dimensions of one sample are summed, as in `torch.distributions.Independent`: 3 for
        (N, C, H, W). It must be given where mean has more than two dimensions.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    Tensor
        (N,) or (*batch,), float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype.
    ValueError
        The shapes or devices differ, or a prior's does not broadcast; event_dim is missing, or larger than
        the number of dimensions; kl_weight is a number that is negative or not finite, or a tensor of another
        shape or one that requires grad; with ``check_finite``: it has a negative entry.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    The KL term of the ELBO in section 3.1 of Lucas et al. (2019). One kernel forward, one backward.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import gaussian_kl
    >>> mean, logvar = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    >>> gaussian_kl(mean, logvar)
    tensor([0.5000, 0.0000])
    >>> gaussian_kl(mean, logvar, prior_mean=torch.tensor([1.0, 0.0]))
    tensor([0.0000, 0.5000])
    """
    mean, logvar = check_latents("gaussian_kl", mean, logvar, check_finite)
    if prior_mean is not None or prior_logvar is not None:
        mean, logvar = _standardise("gaussian_kl", mean, logvar, prior_mean, prior_logvar, check_finite)
    event_dim = check_event_dim("gaussian_kl", "mean", mean, event_dim)
    kl_weight = check_latent_weight("gaussian_kl", "kl_weight", kl_weight, mean, event_dim, check_finite)
    if event_dim > 1:
        mean, logvar = mean.flatten(-event_dim), logvar.flatten(-event_dim)
    if not has_native("gaussian_kl", mean.device):
        return _widened(reference.gaussian_kl)(mean, logvar, kl_weight)
    rows: Tensor = _GaussianKL.apply(as_rows(mean), as_rows(logvar), per_latent(kl_weight))
    kl = scale(rows, kl_weight)
    return kl if mean.ndim == 2 else kl.reshape(mean.shape[:-1])


def gaussian_kl_per_dimension(
    mean: Tensor,
    logvar: Tensor,
    *,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    check_finite: bool = False,
) -> Tensor:
    """KL(N(mean_j, exp(logvar_j)) || N(0, 1)) of each latent of each posterior, or to another prior, in nats.

    ½ (m² + v - log v - 1), free of cancellation: exactly 0 at the prior, and accurate to rounding however
    close to it.

    Parameters
    ----------
    mean, logvar
        Posterior means and log-variances, of any shape, (..., K), and one dtype: float64, float32, bfloat16
        or float16.
    prior_mean, prior_logvar
        Those of the prior, by default 0, as `gaussian_kl` takes them.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    Tensor
        (..., K), float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype.
    ValueError
        The shapes or devices differ, or a prior's does not broadcast.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    The quantity that the (ε, δ)-collapse of section 6.2 of Lucas et al. (2019) is defined on. One
    kernel forward, one backward.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import gaussian_kl_per_dimension
    >>> gaussian_kl_per_dimension(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([[0.5000, 0.0000]])
    """
    op = "gaussian_kl_per_dimension"
    mean, logvar = check_latents(op, mean, logvar, check_finite)
    if prior_mean is not None or prior_logvar is not None:
        mean, logvar = _standardise(op, mean, logvar, prior_mean, prior_logvar, check_finite)
    if not has_native(op, mean.device):
        return _widened(reference.gaussian_kl_per_dimension)(mean, logvar)
    rows: Tensor = _GaussianKLPerDimension.apply(as_rows(mean), as_rows(logvar))
    return rows if mean.ndim == 2 else rows.reshape(mean.shape)


def check_latents(op: str, mean: Tensor, logvar: Tensor, check_finite: bool) -> list[Tensor]:
    """Check that both are floating (..., K) of one shape, dtype and device; float32 under autocast."""
    posterior = {"mean": mean, "logvar": logvar}
    check_posterior(op, posterior)
    return one_dtype(op, check_finite, posterior)


def _standardise(
    op: str,
    mean: Tensor,
    logvar: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    check_finite: bool,
) -> tuple[Tensor, Tensor]:
    """Shift and scale posteriors so that the prior becomes N(0, I), which leaves the KL as it is.

    Near the prior both differences are exact.
    """
    given = {"prior_mean": prior_mean, "prior_logvar": prior_logvar}
    prior = {name: tensor for name, tensor in given.items() if tensor is not None}
    tensors = check_tensors(op, check_finite, mean=mean, **prior)
    for name, tensor in prior.items():
        if not broadcasts(tensor.shape, mean.shape):
            raise ValueError(
                f"{op}: {name} must have the shape of mean, {tuple(mean.shape)}, or broadcast to it, "
                f"got {tuple(tensor.shape)}"
            )
    parts = dict(zip(prior, map(widen, tensors[1:]), strict=True))
    mean, logvar = widen(mean), widen(logvar)
    if "prior_mean" in parts:
        mean = mean - parts["prior_mean"]
    if "prior_logvar" in parts:
        mean, logvar = mean * (-0.5 * parts["prior_logvar"]).exp(), logvar - parts["prior_logvar"]
    return mean, logvar


def as_rows(tensor: Tensor) -> Tensor:
    """Make (..., K) a matrix."""
    if tensor.ndim == 2:
        return tensor  # a view, even of the same shape, costs a node of the graph
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _widened(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda mean, logvar, *kl_weight: formula(widen(mean), widen(logvar), *kl_weight)


def _differentiable(op: str, formula: Callable[..., Tensor]) -> type[Function]:
    """Make the Function of ``op``; one with weights takes them, or None, after mean and logvar."""
    num_weights = 1 if op == "gaussian_kl" else 0
    backward_op = raw(f"{op}_backward")

    def of_weights(mean: Tensor, logvar: Tensor, *kl_weight: Tensor | None) -> Tensor:
        weights = (1.0 if weight is None else weight for weight in kl_weight)
        return _widened(formula)(mean, logvar, *weights)

    def backward(_: bool, *arguments: Tensor | None) -> Any:
        return backward_op(*arguments)

    return differentiable(
        op, raw(op), backward, of_weights, inputs=slice(0, 2), num_arguments=2 + num_weights
    )


_GaussianKL = _differentiable("gaussian_kl", reference.gaussian_kl)
_GaussianKLPerDimension = _differentiable("gaussian_kl_per_dimension", reference.gaussian_kl_per_dimension)


def _register(op: str, function: type[Function], per_dimension: bool) -> None:
    @torch.library.register_fake(f"lineavae::{op}")
    def forward(mean: Tensor, logvar: Tensor, *kl_weight: Tensor | None) -> Tensor:
        dtype = torch.float64 if mean.dtype == torch.float64 else torch.float32
        return mean.new_empty(mean.shape if per_dimension else mean.shape[:1], dtype=dtype)

    @torch.library.register_fake(f"lineavae::{op}_backward")
    def backward(
        grad: Tensor, mean: Tensor, logvar: Tensor, *kl_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return mean.new_empty(mean.shape), mean.new_empty(mean.shape)

    register_rules(op, shared=(2,))
    register_rules(f"{op}_backward", shared=(3,))
    register_autograd(op, function)
    refuse_autograd(f"{op}_backward")


_register("gaussian_kl", _GaussianKL, per_dimension=False)
_register("gaussian_kl_per_dimension", _GaussianKLPerDimension, per_dimension=True)
