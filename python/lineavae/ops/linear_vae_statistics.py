"""Mean analytic ELBO of the linear VAE over a dataset, from its mean and its covariance or a factor of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lineavae import _ext, reference
from lineavae.ops._differentiable import differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native, without_autocast
from lineavae.ops._linear import check_num_features, check_parameters, flatten_parameters
from lineavae.ops._models import broadcast_models, flatten_models, flatten_shared
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import check_shape, check_tensors, widen
from lineavae.ops._weights import check_beta

_ext.load()


def linear_vae_elbo_from_moments(
    sample_mean: Tensor,
    covariance: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float = 1.0,
    *,
    num_features: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Mean analytic ELBO of the linear VAE over a dataset, from its mean and covariance, in nats.

    With S = covariance + (x̄-μ)(x̄-μ)ᵀ, B = V S, M = WᵀW and P = B Vᵀ:

        T = Σ_j d_j M_jj + <M, P> - 2 <B, Wᵀ> + tr S
        ELBO / N = -T / (2σ²) - (D/2) log(2πσ²) - (β/2) (Σ_j (d_j - log d_j - 1) + tr P)

    One evaluation with its gradient costs 4 D² K + 8 D K² flops, however many samples the dataset has.

    Parameters
    ----------
    sample_mean
        Mean x̄ of the data, (*models, D). All tensors share one dtype and device.
    covariance
        Biased covariance of the data about x̄, symmetric, (*models, D, D).
    weight
        Decoder W, (*models, D, K).
    encoder
        Encoder V, (*models, K, D).
    mu
        Model mean μ, (*models, D).
    log_d
        Log of the posterior variances d, (*models, K).
    log_sigma2
        Log of the observation noise σ², (*models,).
    beta
        Weight of the KL term: a number or a tensor broadcastable over models, whose values are looked at with
        ``check_finite`` only; not differentiable.
    num_features
        The D of the constant (D/2) log(2πσ²). Larger than the D of the tensors where coordinates without
        variance were dropped in which W, V and x̄ - μ are zero; the ELBO is then that of the full model.
    check_finite
        Raise at the first NaN or infinity of an argument instead of propagating it.

    Returns
    -------
    Tensor
        (*models,), the mean over samples; the leading dimensions broadcast, and statistics that all models
        share are not copied. float64 for float64 inputs and float32 for all others.

    Raises
    ------
    TypeError
        An argument is no tensor, or of another dtype.
    ValueError
        A shape or device does not fit; beta is a number that is negative or not finite, or a tensor that
        requires grad; a statistic requires grad; with ``check_finite``: beta has a negative entry.
    FloatingPointError
        With ``check_finite``: an argument has a NaN or an infinity; the index is named.

    Notes
    -----
    Lucas et al. (2019), equations 15-20, averaged over samples, with every constant. The
    distortion T is a difference of terms as large as tr S, so float32 loses about tr S / (D σ²) times its
    precision: use float64 for noise far below the data's variance.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import linear_vae_elbo_from_moments
    >>> weight = torch.tensor([[1.0], [0.0]], requires_grad=True)
    >>> elbo = linear_vae_elbo_from_moments(
    ...     torch.zeros(2), torch.diag(torch.tensor([2.0, 1.0])),
    ...     weight, torch.tensor([[0.5, 0.0]]), torch.zeros(2), torch.tensor([0.5]).log(), torch.tensor(0.0),
    ... )
    >>> elbo
    tensor(-3.1845, grad_fn=<...>)
    """
    statistics = {"sample_mean": sample_mean, "covariance": covariance}
    parameters = (weight, encoder, mu, log_d, log_sigma2)
    return _elbo("linear_vae_elbo_from_moments", statistics, parameters, beta, num_features, check_finite)


def linear_vae_elbo_from_factor(
    sample_mean: Tensor,
    factor: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float = 1.0,
    *,
    num_features: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Mean analytic ELBO of the linear VAE over a dataset, from a factor of its covariance, in nats.

    The covariance is F Fᵀ; the formula is that of `linear_vae_elbo_from_moments`. One evaluation with
    its gradient costs 8 D r K + 8 D K² flops, which pays for N < D (F is the centred data / √N, transposed).
    In an eigenbasis, where the data were rotated by the eigenvectors of their covariance, the factor is
    diagonal and the cost falls to 8 D K².

    Parameters
    ----------
    sample_mean
        Mean x̄ of the data, (*models, D). All tensors share one dtype and device.
    factor
        Factor F of the biased covariance about x̄, (*models, D, r) for any r, or (*models, D) for the
        diagonal of a diagonal one; its models are those of sample_mean.
    weight, encoder, mu, log_d, log_sigma2, beta, num_features, check_finite
        As in `linear_vae_elbo_from_moments`.

    Returns
    -------
    Tensor
        (*models,), as that of `linear_vae_elbo_from_moments`, with the same errors.

    Notes
    -----
    Lucas et al. (2019), equations 15-20, averaged over samples, with every constant. What is said there of
    float32 holds here too.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import linear_vae_elbo_from_factor
    >>> elbo = linear_vae_elbo_from_factor(
    ...     torch.zeros(2), torch.tensor([2.0, 1.0]).sqrt(), torch.tensor([[1.0], [0.0]]),
    ...     torch.tensor([[0.5, 0.0]]), torch.zeros(2), torch.tensor([0.5]).log(), torch.tensor(0.0),
    ... )
    >>> elbo
    tensor(-3.1845)
    """
    statistics = {"sample_mean": sample_mean, "factor": factor}
    parameters = (weight, encoder, mu, log_d, log_sigma2)
    return _elbo("linear_vae_elbo_from_factor", statistics, parameters, beta, num_features, check_finite)


def _elbo(
    op: str,
    statistics: dict[str, Tensor],
    parameters: tuple[Tensor, ...],
    beta: Tensor | float,
    num_features: int | None,
    check_finite: bool,
) -> Tensor:
    """Check the arguments of ``op``, of which the statistics go by their names, and run it."""
    named = dict(zip(("weight", "encoder", "mu", "log_d", "log_sigma2"), parameters, strict=True))
    checked = check_tensors(op, check_finite, **statistics, **named)
    for name, statistic in statistics.items():
        if statistic.requires_grad:
            raise ValueError(f"{op}: {name} must not require grad: statistics of the data carry no gradient")
    sample_mean, covariance, *wide = map(widen, checked)
    if sample_mean.ndim < 1:
        raise ValueError(f"{op}: sample_mean must have shape (*models, D), got ()")
    features = sample_mean.shape[-1]
    _, covariance_name = statistics
    covariance_rank = _check_covariance(op, covariance_name, covariance, sample_mean)
    over_models = check_parameters(op, features, *wide)
    beta = check_beta(op, beta, sample_mean, check_finite)
    num_features = check_num_features(op, num_features, features)
    models = broadcast_models(
        op,
        {
            "sample_mean": sample_mean.shape[:-1],
            covariance_name: covariance.shape[: covariance.ndim - covariance_rank],
            **over_models,
            "beta": beta.shape,
        },
    )
    if not has_native(op, sample_mean.device):
        return without_autocast(_FORMULAS[op], sample_mean, covariance, *wide, beta, num_features)
    elbo: Tensor = _FUNCTIONS[op].apply(
        flatten_shared(sample_mean, models, 1),
        flatten_shared(covariance, models, covariance_rank),
        *flatten_parameters(models, *wide),
        flatten_models(beta, models, 0),
        num_features,
    )[0]
    return elbo.reshape(models)


def _check_covariance(op: str, name: str, covariance: Tensor, sample_mean: Tensor) -> int:
    """Check the covariance or its factor against sample_mean; return its number of dimensions per model."""
    features = sample_mean.shape[-1]
    if name == "covariance":
        check_shape(op, name, covariance, {"D": features, "D'": features})
        return 2
    if covariance.ndim == sample_mean.ndim:
        check_shape(op, name, covariance, {"D": features})
        return 1
    if covariance.ndim != sample_mean.ndim + 1 or covariance.shape[-2] != features:
        raise ValueError(
            f"{op}: {name} must have shape (*models, D, r), or (*models, D) for a diagonal one, with the "
            f"models of sample_mean and D={features}, got {tuple(covariance.shape)}"
        )
    return 2


def _differentiable(op: str) -> type[Function]:
    """Register the raw op and make its Function."""
    backward_op = raw(f"{op}_backward")

    def backward(_: bool, grad: Tensor, *arguments: Any) -> Any:
        inputs, num_features, kept = arguments[:8], arguments[8], arguments[9:]
        return backward_op(grad, *inputs, *kept, num_features)

    function = differentiable(
        op, raw(op), backward, _FORMULAS[op], inputs=slice(2, 7), num_arguments=9, num_plain=1
    )
    _register(op)
    register_autograd(op, function)
    refuse_autograd(f"{op}_backward")
    return function


def _register(op: str) -> None:
    @torch.library.register_fake(f"lineavae::{op}")
    def forward(
        sample_mean: Tensor,
        covariance: Tensor,
        weight: Tensor,
        encoder: Tensor,
        mu: Tensor,
        log_d: Tensor,
        log_sigma2: Tensor,
        beta: Tensor,
        num_features: int,
    ) -> tuple[Tensor, ...]:
        models, features, latent_dim = weight.shape
        return (
            weight.new_empty(models),
            weight.new_empty(models, dtype=torch.float64),
            weight.new_empty(models, features),
            weight.new_empty(models, latent_dim),
            weight.new_empty(models, features, latent_dim),
            weight.new_empty(models, latent_dim, latent_dim),
            weight.new_empty(models, latent_dim, latent_dim),
        )

    @torch.library.register_fake(f"lineavae::{op}_backward")
    def backward(
        grad: Tensor,
        sample_mean: Tensor,
        covariance: Tensor,
        weight: Tensor,
        encoder: Tensor,
        mu: Tensor,
        log_d: Tensor,
        log_sigma2: Tensor,
        *saved: Any,
    ) -> tuple[Tensor, ...]:
        return tuple(weight.new_empty(p.shape) for p in (weight, encoder, mu, log_d, log_sigma2))

    register_rules(op, shared=(0, 1))
    register_rules(f"{op}_backward", shared=(1, 2))


_FORMULAS: dict[str, Callable[..., Tensor]] = {
    "linear_vae_elbo_from_moments": reference.linear_vae_elbo_from_moments,
    "linear_vae_elbo_from_factor": reference.linear_vae_elbo_from_factor,
}
_FUNCTIONS = {op: _differentiable(op) for op in _FORMULAS}
