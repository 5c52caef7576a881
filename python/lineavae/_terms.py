"""Terms of an ELBO that are plain formulas, which models use as the references do."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weighted(weight: Tensor | float, value: Tensor) -> Tensor:
    """Multiply by a weight; 0 gives 0, and no gradient, whatever the value is."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, 0, weight * value)
    if weight == 0:
        return value.masked_fill(torch.ones((), dtype=torch.bool, device=value.device), 0)
    return weight * value


def gaussian_term(distortion: Tensor, log_sigma2: Tensor, num_features: int) -> Tensor:
    """-T / (2σ²) - (D/2) log(2πσ²), the expected Gaussian log-likelihood with distortion T."""
    log_normaliser = 0.5 * num_features * (math.log(2 * math.pi) + log_sigma2)
    return -0.5 * distortion * (-log_sigma2).exp() - log_normaliser
