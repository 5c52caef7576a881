# The names, once: ops/<op>.cpp, and ops/cpu/<kernels>.cpp with ops/cuda/<kernels>.cuh and .cu.
set(LINEAVAE_OPS bernoulli_log_likelihood collapse_statistics expected_bernoulli_log_likelihood gaussian_kl
  gaussian_log_likelihood linear_vae_elbo linear_vae_elbo_from_moments linear_vae_elbo_from_factor reparameterized_kl)
set(LINEAVAE_KERNELS bernoulli_log_likelihood collapse_statistics expected_bernoulli_log_likelihood gaussian_kl
  gaussian_log_likelihood linear_vae_elbo linear_vae_statistics reparameterized_kl)
