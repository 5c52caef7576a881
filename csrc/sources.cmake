# The names, once: ops/<op>.cpp, and ops/cpu/<kernels>.cpp with ops/cuda/<kernels>.cuh and .cu.
set(LINEAVAE_OPS collapse_statistics gaussian_kl gaussian_log_likelihood linear_vae_elbo linear_vae_elbo_from_moments linear_vae_elbo_from_factor)
set(LINEAVAE_KERNELS collapse_statistics gaussian_kl gaussian_log_likelihood linear_vae_elbo linear_vae_statistics)
