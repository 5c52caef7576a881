"""Analytic ELBO of the linear VAE, averaged over a dataset whose covariance is given as S_x̄ = F Fᵀ.

The formula is that of `lineavae.reference.linear_vae_elbo_from_moments`; a diagonal factor, the one of
an eigenbasis, may be given by its diagonal.
"""

from torch import Tensor

from lineavae.reference._range import in_double
from lineavae.reference.linear_vae_elbo_from_moments import linear_vae_elbo_from_moments


@in_double
def linear_vae_elbo_from_factor(
    sample_mean: Tensor,
    factor: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float = 1.0,
    num_features: int | None = None,
) -> Tensor:
    """As the moments form, with factor (..., D, r), or (..., D) for a diagonal one, for the covariance."""
    diagonal = factor.ndim == sample_mean.ndim
    covariance = factor.square().diag_embed() if diagonal else factor @ factor.mT
    return linear_vae_elbo_from_moments(
        sample_mean, covariance, weight, encoder, mu, log_d, log_sigma2, beta, num_features
    )
