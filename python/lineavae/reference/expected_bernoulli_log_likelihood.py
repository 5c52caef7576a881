"""Expected Bernoulli log-likelihood of a linear decoder under a Gaussian posterior, without sampling.

The logits W z + b of a sample are normal variables with means m = W μ + b and variances s² = (W ∘ W) v:

    E log p(x|z) = Σ_i (x_i m_i - E softplus(a_i)),    a_i ~ N(m_i, s²_i)

The logistic distribution is a scale mixture of normal ones (Monahan and Stefanski 1992). A mixture of six,
Σ_i p_i N(0, τ_i²), has with T_i = √(τ_i² + s²)

    E softplus(a) = Σ_i p_i (m Φ(m/T_i) + T_i φ(m/T_i))    up to 5.2e-8, whatever m and s²
"""

import math

import torch
from torch import Tensor

from lineavae.reference._range import in_double

# derived by tests/ops/fit_softplus_mixture.py
MIXTURE_WEIGHTS = (
    0.027836408056434753,
    0.217757324042343,
    0.3947711209363421,
    0.27834600927989245,
    0.07654291449928365,
    0.004746223185704037,
)
MIXTURE_SCALES = (
    0.8546025722195498,
    1.1666483790533457,
    1.5808688999526925,
    2.1414132393207583,
    2.887057992452868,
    3.8995440031456132,
)


def expected_softplus(mean: Tensor, variance: Tensor) -> Tensor:
    """E softplus(a) for a ~ N(mean, variance), elementwise."""
    total = torch.zeros_like(mean)
    for weight, scale in zip(MIXTURE_WEIGHTS, MIXTURE_SCALES, strict=True):
        spread = (variance + scale**2).sqrt()
        u = mean / spread
        density = (-0.5 * u * u).exp() / math.sqrt(2 * math.pi)
        total = total + weight * (mean * torch.special.ndtr(u) + spread * density)
    return total


@in_double
def expected_bernoulli_log_likelihood(
    x: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """x (..., N, D), mean and logvar (..., N, K), weight (..., D, K), bias (..., D) -> (..., N), in nats."""
    logits = mean @ weight.mT + bias.unsqueeze(-2)
    variances = logvar.exp() @ weight.square().mT
    return (x * logits - expected_softplus(logits, variances)).sum(-1)
