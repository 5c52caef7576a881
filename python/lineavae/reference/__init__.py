"""The formula of every operator in plain PyTorch: oracle of the tests, documentation and fallback.

Any dtype, any device, any number of leading model dimensions; differentiable any number of times by autograd.
"""

from lineavae.reference.bernoulli_log_likelihood import bernoulli_log_likelihood
from lineavae.reference.collapse_statistics import collapse_statistics
from lineavae.reference.expected_bernoulli_log_likelihood import expected_bernoulli_log_likelihood
from lineavae.reference.expected_gaussian_log_likelihood import expected_gaussian_log_likelihood
from lineavae.reference.gaussian_kl import expm1_minus_x, gaussian_kl, gaussian_kl_per_dimension
from lineavae.reference.gaussian_log_likelihood import gaussian_log_likelihood, gaussian_log_likelihood_mean
from lineavae.reference.linear_vae_ascent import linear_vae_ascent
from lineavae.reference.linear_vae_elbo import linear_vae_elbo
from lineavae.reference.linear_vae_elbo_from_factor import linear_vae_elbo_from_factor
from lineavae.reference.linear_vae_elbo_from_moments import linear_vae_elbo_from_moments
from lineavae.reference.reparameterized_kl import philox, reparameterized_kl, standard_normal

__all__ = [
    "bernoulli_log_likelihood",
    "collapse_statistics",
    "expected_bernoulli_log_likelihood",
    "expected_gaussian_log_likelihood",
    "expm1_minus_x",
    "gaussian_kl",
    "gaussian_kl_per_dimension",
    "gaussian_log_likelihood",
    "gaussian_log_likelihood_mean",
    "linear_vae_ascent",
    "linear_vae_elbo",
    "linear_vae_elbo_from_factor",
    "linear_vae_elbo_from_moments",
    "philox",
    "reparameterized_kl",
    "standard_normal",
]
