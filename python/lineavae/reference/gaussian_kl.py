"""KL divergence of diagonal Gaussians to the standard normal.

KL(N(m, v) || N(0, 1)) = ½ (m² + v - log v - 1) = ½ (m² + φ(log v)),    φ(t) = eᵗ - 1 - t >= 0
"""

import torch
from torch import Tensor

# φ(t) / (½ t²) = 1 + t/3 (1 + t/4 (1 + ... )): sixteen terms are exact in float64 for |t| < 1/2.
_SERIES_LIMIT = 0.5
_SERIES_TERMS = 16


def expm1_minus_x(x: Tensor) -> Tensor:
    """eˣ - 1 - x without the cancellation of the literal form near zero."""
    near_zero = x.abs() < _SERIES_LIMIT
    t = torch.where(near_zero, x, 0)  # keeps the unused branch, and its gradient, finite
    series = torch.ones_like(t)
    for n in range(_SERIES_TERMS + 2, 2, -1):
        series = 1 + t / n * series
    return torch.where(near_zero, 0.5 * t * t * series, torch.expm1(x) - x)


def gaussian_kl_per_dimension(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of each latent: (..., K), (..., K) -> (..., K), in nats."""
    return 0.5 * (mean * mean + expm1_minus_x(logvar))


def gaussian_kl(mean: Tensor, logvar: Tensor, kl_weight: Tensor | float = 1.0) -> Tensor:
    """KL summed over the latents with weights () or (K,): (..., K), (..., K) -> (...), in nats."""
    return (kl_weight * gaussian_kl_per_dimension(mean, logvar)).sum(-1)
