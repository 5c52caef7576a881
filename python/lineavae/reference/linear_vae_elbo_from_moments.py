"""Analytic ELBO of the linear VAE, averaged over a dataset, from its sufficient statistics alone.

With S = S_x̄ + (x̄-μ)(x̄-μ)ᵀ, B = V S, M = WᵀW and P = B Vᵀ:

    T = Σ_j d_j M_jj + <M, P> - 2 <B, Wᵀ> + tr S
    ELBO / N = -T / (2σ²) - (D/2) log(2πσ²) - (β/2) (Σ_j (d_j - log d_j - 1) + tr P)
"""

from torch import Tensor

from lineavae._terms import gaussian_term, weighted
from lineavae.reference._range import in_double
from lineavae.reference.gaussian_kl import expm1_minus_x


@in_double
def linear_vae_elbo_from_moments(
    sample_mean: Tensor,
    covariance: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float = 1.0,
    num_features: int | None = None,
) -> Tensor:
    """sample_mean (..., D), covariance (..., D, D), weight (..., D, K), encoder (..., K, D), ... -> (...)."""
    offset = sample_mean - mu
    second_moment = covariance + offset.unsqueeze(-1) * offset.unsqueeze(-2)
    encoded = encoder @ second_moment
    gram = weight.mT @ weight
    aggregate = encoded @ encoder.mT
    distortion = (
        (log_d.exp() * _diagonal(gram)).sum(-1)
        + (gram * aggregate).sum((-2, -1))
        - 2 * (encoded * weight.mT).sum((-2, -1))
        + _diagonal(second_moment).sum(-1)
    )
    kl = 0.5 * (expm1_minus_x(log_d).sum(-1) + _diagonal(aggregate).sum(-1))
    return gaussian_term(distortion, log_sigma2, num_features or sample_mean.shape[-1]) - weighted(beta, kl)


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)
