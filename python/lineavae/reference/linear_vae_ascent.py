"""Gradient ascent on the mean analytic ELBO of many linear VAEs of one size, with μ at the sample mean.

With c = 1/σ², S the covariance about that mean, C = S Vᵀ, M = WᵀW and Q = V C:

    dW      = c (C - W (Q + diag d))            dlog d  = ½ (β (1 - d) - c d diag(M))
    dVᵀ     = S (c W - Vᵀ (c M + β I))          dlog σ² = ½ (c T - (D + omitted features))
    T       = Σ_k d_k M_kk + Σ_kl M_kl Q_kl - 2 Σ_ik W_ik C_ik + tr S + omitted variance

which are the gradients of equations 15-20 of Lucas et al. (2019), with a weight β of the KL.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's, as torch.optim.Adam has them


class Ascent(NamedTuple):
    """Linear VAEs after some steps of gradient ascent, and all that more steps need.

    Examples
    --------
    >>> import torch
    >>> from lineavae.ops import linear_vae_ascent
    >>> start, none = torch.zeros(1, 4), torch.empty(1, 0)  # D = K = 1
    >>> lr = beta = torch.full((1, 5), 0.1)
    >>> after = linear_vae_ascent(torch.eye(1), start, none, none, lr, beta, torch.tensor([True]))
    >>> after.steps_taken, after.active
    (tensor([5]), tensor([True]))
    """

    parameters: Tensor
    """(M, 2DK + K + 1): W (D, K), Vᵀ (D, K), log d (K) and log σ², one after the other."""
    first_moment: Tensor
    """Adam's average of the gradient, of the shape of parameters; (M, 0) for plain gradient ascent."""
    second_moment: Tensor
    """Adam's average of the squared gradient, of the same shape."""
    active: Tensor
    """(M,), bool: the models that have not stopped."""
    steps_taken: Tensor
    """(M,), int64: how many of the steps of this call each model took."""
    gradient_norm: Tensor
    """(M,): norm of the gradient, over all that is trained, of the last step taken; NaN where none was."""


def linear_vae_ascent(
    covariance: Tensor,
    parameters: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    lr: Tensor,
    beta: Tensor,
    active: Tensor,
    step: int = 0,
    tolerance: float = 0.0,
    learn_sigma2: bool = True,
    omitted_features: int = 0,
    omitted_variance: float = 0.0,
) -> Ascent:
    """covariance (D, D), parameters (M, 2DK + K + 1), lr and beta (M, S), active (M,): S steps."""
    num_models, size = parameters.shape
    trained = torch.ones(size, dtype=torch.bool, device=parameters.device)
    trained[-1] = learn_sigma2
    steps_taken = torch.zeros(num_models, dtype=torch.int64, device=parameters.device)
    norm = parameters.new_full((num_models,), torch.nan)
    for i in range(lr.shape[1]):
        gradient = _gradient(covariance, parameters, beta[:, i], omitted_features, omitted_variance) * trained
        direction, step_size = gradient, lr[:, i]
        moves = active[:, None] & trained
        if first_moment.shape[1] > 0:
            correction_1, correction_2 = (1 - decay ** (step + i + 1) for decay in (BETA_1, BETA_2))
            mean = first_moment + (1 - BETA_1) * (gradient - first_moment)
            square = BETA_2 * second_moment + (1 - BETA_2) * gradient.square()
            first_moment, second_moment = mean.where(moves, first_moment), square.where(moves, second_moment)
            direction = first_moment / (second_moment.sqrt() / math.sqrt(correction_2) + EPSILON)
            step_size = step_size / correction_1
        parameters = (parameters + step_size[:, None] * direction).where(moves, parameters)
        norm = torch.linalg.vector_norm(gradient, dim=1).where(active, norm)
        steps_taken = steps_taken + active
        active = active & ~(norm < tolerance)
    return Ascent(parameters, first_moment, second_moment, active, steps_taken, norm)


def _gradient(
    covariance: Tensor, parameters: Tensor, beta: Tensor, omitted_features: int, omitted_variance: float
) -> Tensor:
    num_features = covariance.shape[0]
    weight, encoder_t, log_d, log_sigma2 = split_parameters(parameters, num_features)
    beta, d, precision = beta[:, None], log_d.exp(), (-log_sigma2).exp()[:, None]
    covariance_encoder = covariance @ encoder_t  # C
    gram = weight.mT @ weight
    aggregate = encoder_t.mT @ covariance_encoder  # Q
    gram_diagonal = gram.diagonal(dim1=-2, dim2=-1)
    distortion = (
        (d * gram_diagonal).sum(-1)
        + (gram * aggregate).sum((-2, -1))
        - 2 * (weight * covariance_encoder).sum((-2, -1))
        + covariance.trace()
        + omitted_variance
    )
    pull = precision[..., None] * gram + torch.diag_embed(beta.expand_as(d))
    grad_weight = precision[..., None] * (covariance_encoder - weight @ (aggregate + torch.diag_embed(d)))
    grad_encoder_t = covariance @ (precision[..., None] * weight - encoder_t @ pull)
    grad_log_d = 0.5 * (beta * (1 - d) - precision * d * gram_diagonal)
    grad_log_sigma2 = 0.5 * (precision * distortion[:, None] - (num_features + omitted_features))
    return torch.cat([grad_weight.flatten(1), grad_encoder_t.flatten(1), grad_log_d, grad_log_sigma2], 1)


def split_parameters(parameters: Tensor, num_features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give views of W (M, D, K), Vᵀ (M, D, K), log d (M, K) and log σ² (M,)."""
    latent_dim = num_latents(parameters, num_features)
    size = num_features * latent_dim
    weight, encoder_t, log_d, log_sigma2 = parameters.split([size, size, latent_dim, 1], 1)
    shape = (-1, num_features, latent_dim)
    return weight.reshape(shape), encoder_t.reshape(shape), log_d, log_sigma2.squeeze(1)


def num_parameters(num_features: int, latent_dim: int) -> int:
    """Give the number of parameters of a model."""
    return 2 * num_features * latent_dim + latent_dim + 1


def num_latents(parameters: Tensor, num_features: int) -> int:
    """Give K, of 2DK + K + 1 parameters."""
    return (parameters.shape[1] - 1) // (2 * num_features + 1)
