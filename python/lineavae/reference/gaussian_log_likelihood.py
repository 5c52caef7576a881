"""Log-likelihood of data under Gaussians around their reconstructions (Lucas et al. 2019, equation 10).

    log p(x|z) = -½ Σ_i ((x_i - x̂_i)² / σ_i² + log σ_i² + log 2π)

The paper prints ½ where the normaliser has D/2.
"""

import math

from torch import Tensor

from lineavae.reference._range import in_double, standardize


@in_double
def gaussian_log_likelihood(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    """x, x_hat (..., N, D), log_sigma2 broadcast to them -> (..., N), in nats."""
    squares = standardize(x - x_hat, log_sigma2).square()
    return -0.5 * (squares + log_sigma2 + math.log(2 * math.pi)).sum(-1)


@in_double
def gaussian_log_likelihood_mean(x: Tensor, x_hat: Tensor, log_sigma2: Tensor) -> Tensor:
    """Average over the samples: x, x_hat (..., N, D), log_sigma2 broadcast to them -> (...), in nats."""
    return gaussian_log_likelihood(x, x_hat, log_sigma2).mean(-1)
