"""What the ELBO from moments and the ELBO from a factor share: everything but the form of the covariance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lineavae import _ext
from lineavae.ops._differentiable import differentiable, raw, refuse_autograd, register_autograd
from lineavae.ops._dispatch import has_native, without_autocast
from lineavae.ops._linear import check_num_features, check_parameters
from lineavae.ops._models import broadcast_models, flatten_models, flatten_shared
from lineavae.ops._registration import register_rules
from lineavae.ops._tensors import check_shape, check_tensors, widen
from lineavae.ops._weights import check_beta

_ext.load()


def statistics_elbo(
    op: str,
    function: type[Function],
    formula: Callable[..., Tensor],
    covariance_name: str,
    covariance: Tensor,
    sample_mean: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float,
    num_features: int | None,
    check_finite: bool,
) -> Tensor:
    """Check the arguments of ``op``, whose covariance argument has the given name, and run it."""
    named = {"sample_mean": sample_mean, covariance_name: covariance}
    named |= {"weight": weight, "encoder": encoder, "mu": mu, "log_d": log_d, "log_sigma2": log_sigma2}
    checked = check_tensors(op, check_finite, **named)
    for name in ("sample_mean", covariance_name):
        if named[name].requires_grad:
            raise ValueError(f"{op}: {name} must not require grad: statistics of the data carry no gradient")
    sample_mean, covariance, weight, encoder, mu, log_d, log_sigma2 = map(widen, checked)
    if sample_mean.ndim < 1:
        raise ValueError(f"{op}: sample_mean must have shape (*models, D), got ()")
    features = sample_mean.shape[-1]
    covariance_rank = _check_covariance(op, covariance_name, covariance, sample_mean)
    check_parameters(op, features, weight, encoder, mu, log_d)
    beta = check_beta(op, beta, weight, check_finite)
    num_features = check_num_features(op, num_features, features)
    models = broadcast_models(
        op,
        {
            "sample_mean": sample_mean.shape[:-1],
            covariance_name: covariance.shape[: covariance.ndim - covariance_rank],
            "weight": weight.shape[:-2],
            "encoder": encoder.shape[:-2],
            "mu": mu.shape[:-1],
            "log_d": log_d.shape[:-1],
            "log_sigma2": log_sigma2.shape,
            "beta": beta.shape,
        },
    )
    if not has_native(op, weight.device):
        return without_autocast(
            formula, sample_mean, covariance, weight, encoder, mu, log_d, log_sigma2, beta, num_features
        )
    elbo: Tensor = function.apply(
        flatten_shared(sample_mean, models, 1),
        flatten_shared(covariance, models, covariance_rank),
        flatten_models(weight, models, 2),
        flatten_models(encoder, models, 2),
        flatten_models(mu, models, 1),
        flatten_models(log_d, models, 1),
        flatten_models(log_sigma2, models, 0),
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


def differentiable_statistics(op: str, formula: Callable[..., Tensor]) -> type[Function]:
    """Register the raw op and make its Function."""
    backward_op = raw(f"{op}_backward")

    def backward(_: bool, grad: Tensor, *arguments: Any) -> Any:
        inputs, num_features, kept = arguments[:8], arguments[8], arguments[9:]
        return backward_op(grad, *inputs, *kept, num_features)

    function = differentiable(
        op, raw(op), backward, formula, inputs=slice(2, 7), num_arguments=9, num_plain=1
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
