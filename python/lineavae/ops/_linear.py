"""Shapes of the parameters of a linear VAE, and of a linear decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from lineavae._arguments import check_integer
from lineavae.ops._models import flatten_models
from lineavae.ops._tensors import check_shape


def check_parameters(
    op: str,
    num_features: int,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
) -> dict[str, torch.Size]:
    """Check the shapes of a linear VAE's parameters; returns those over models, by name."""
    if weight.ndim < 2:
        raise ValueError(f"{op}: weight must have shape (*models, D, K), got {tuple(weight.shape)}")
    latent_dim = weight.shape[-1]
    check_shape(op, "weight", weight, {"D": num_features, "K": latent_dim})
    check_shape(op, "encoder", encoder, {"K": latent_dim, "D": num_features})
    check_shape(op, "mu", mu, {"D": num_features})
    check_shape(op, "log_d", log_d, {"K": latent_dim})
    return {
        "weight": weight.shape[:-2],
        "encoder": encoder.shape[:-2],
        "mu": mu.shape[:-1],
        "log_d": log_d.shape[:-1],
        "log_sigma2": log_sigma2.shape,
    }


def flatten_parameters(
    models: torch.Size, weight: Tensor, encoder: Tensor, mu: Tensor, log_d: Tensor, log_sigma2: Tensor
) -> tuple[Tensor, ...]:
    """(*models, ...) -> (M, ...), each."""
    return (
        flatten_models(weight, models, 2),
        flatten_models(encoder, models, 2),
        flatten_models(mu, models, 1),
        flatten_models(log_d, models, 1),
        flatten_models(log_sigma2, models, 0),
    )


def check_linear_decoder(
    op: str, x: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, bias: Tensor
) -> dict[str, torch.Size]:
    """Check the shapes of data, posteriors and a linear decoder; returns those over models, by name."""
    if x.ndim < 2:
        raise ValueError(f"{op}: x must have shape (*models, N, D), got {tuple(x.shape)}")
    if weight.ndim < 2:
        raise ValueError(f"{op}: weight must have shape (*models, D, K), got {tuple(weight.shape)}")
    num_samples, num_features, latent_dim = *x.shape[-2:], weight.shape[-1]
    check_shape(op, "weight", weight, {"D": num_features, "K": latent_dim})
    check_shape(op, "mean", mean, {"N": num_samples, "K": latent_dim})
    check_shape(op, "logvar", logvar, {"N": num_samples, "K": latent_dim})
    check_shape(op, "bias", bias, {"D": num_features})
    matrices = {"x": x, "mean": mean, "logvar": logvar, "weight": weight}
    return {name: tensor.shape[:-2] for name, tensor in matrices.items()} | {"bias": bias.shape[:-1]}


def check_num_features(op: str, num_features: int | None, features: int) -> int:
    """Check the D of the normaliser: that of the tensors by default, or a larger one."""
    if num_features is None:
        return features
    return check_integer(op, "num_features", num_features, features)
