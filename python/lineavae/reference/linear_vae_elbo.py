"""Analytic ELBO of the linear VAE, per sample (Lucas et al. 2019, appendix C.1, equations 15-20).

With r = x - μ, h = V r and e = r - W h:

    ELBO(x) = -(‖e‖² + Σ_j d_j ‖w_j‖²) / (2σ²) - (D/2) log(2πσ²) - (β/2) (Σ_j (d_j - log d_j - 1) + ‖h‖²)
"""

from torch import Tensor

from lineavae._terms import gaussian_term, weighted
from lineavae.reference._range import in_double
from lineavae.reference.gaussian_kl import expm1_minus_x


@in_double
def linear_vae_elbo(
    x: Tensor,
    weight: Tensor,
    encoder: Tensor,
    mu: Tensor,
    log_d: Tensor,
    log_sigma2: Tensor,
    beta: Tensor | float = 1.0,
) -> Tensor:
    """x (..., N, D), weight (..., D, K), encoder (..., K, D), mu (..., D), log_d (..., K) -> (..., N)."""
    centred = x - mu.unsqueeze(-2)
    code = centred @ encoder.mT
    residual = centred - code @ weight.mT
    distortion = residual.square().sum(-1) + (log_d.exp() * weight.square().sum(-2)).sum(-1, keepdim=True)
    kl = 0.5 * (expm1_minus_x(log_d).sum(-1, keepdim=True) + code.square().sum(-1))
    return gaussian_term(distortion, log_sigma2.unsqueeze(-1), x.shape[-1]) - weighted(_column(beta), kl)


def _column(beta: Tensor | float) -> Tensor | float:
    return beta.unsqueeze(-1) if isinstance(beta, Tensor) else beta
