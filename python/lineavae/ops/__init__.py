"""The operators: loss terms as differentiable functions with native CPU and CUDA kernels.

Every function works on CPU and CUDA tensors, under ``torch.compile``, ``torch.func.vmap`` and autocast, and
is twice differentiable unless it says otherwise. Half-precision inputs give float32 results and
half-precision gradients.
"""

from lineavae.ops.bernoulli_log_likelihood import bernoulli_log_likelihood
from lineavae.ops.collapse_statistics import collapse_statistics
from lineavae.ops.expected_bernoulli_log_likelihood import expected_bernoulli_log_likelihood
from lineavae.ops.expected_gaussian_log_likelihood import expected_gaussian_log_likelihood
from lineavae.ops.free_bits_kl import free_bits_kl
from lineavae.ops.gaussian_kl import gaussian_kl, gaussian_kl_per_dimension
from lineavae.ops.gaussian_log_likelihood import gaussian_log_likelihood, gaussian_log_likelihood_mean
from lineavae.ops.linear_vae_ascent import linear_vae_ascent
from lineavae.ops.linear_vae_elbo import linear_vae_elbo
from lineavae.ops.linear_vae_statistics import linear_vae_elbo_from_factor, linear_vae_elbo_from_moments
from lineavae.ops.reparameterized_kl import reparameterized_kl
from lineavae.reference.collapse_statistics import LatentStatistics, histogram_edges, merge_moments
from lineavae.reference.linear_vae_ascent import Ascent

__all__ = [
    "Ascent",
    "LatentStatistics",
    "bernoulli_log_likelihood",
    "collapse_statistics",
    "expected_bernoulli_log_likelihood",
    "expected_gaussian_log_likelihood",
    "free_bits_kl",
    "gaussian_kl",
    "gaussian_kl_per_dimension",
    "gaussian_log_likelihood",
    "gaussian_log_likelihood_mean",
    "histogram_edges",
    "linear_vae_ascent",
    "linear_vae_elbo",
    "linear_vae_elbo_from_factor",
    "linear_vae_elbo_from_moments",
    "merge_moments",
    "reparameterized_kl",
]
