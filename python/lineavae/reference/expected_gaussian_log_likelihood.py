"""Expected Gaussian log-likelihood of a linear decoder under a Gaussian posterior, with no sampling.

With x̂ = W m + b and z ~ N(m, diag v), the reconstruction W z + b has variance Σ_j v_j W_ij² about x̂_i:

    E log p(x|z) = -½ Σ_i (((x_i - x̂_i)² + Σ_j v_j W_ij²) / σ_i² + log σ_i² + log 2π)

For one σ² this is section 5's reconstruction term, E‖x - W z - b‖² = ‖x - W m - b‖² + Σ_j v_j ‖w_j‖².
"""

import math

from torch import Tensor

from lineavae.reference._range import in_double


@in_double
def expected_gaussian_log_likelihood(
    x: Tensor, mean: Tensor, logvar: Tensor, weight: Tensor, bias: Tensor, log_sigma2: Tensor
) -> Tensor:
    """x (..., N, D), mean, logvar (..., N, K), weight (..., D, K), bias (..., D), log_sigma2 -> (..., N)."""
    residual = x - mean @ weight.mT - bias.unsqueeze(-2)
    distortion = (residual.square() + logvar.exp() @ weight.square().mT) * (-log_sigma2).exp()
    return -0.5 * (distortion + log_sigma2 + math.log(2 * math.pi)).sum(-1)
