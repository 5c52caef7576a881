#include "ops/cuda/bernoulli_log_likelihood.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(T)                                                   \
  template void bernoulli_log_likelihood(Cuda, const BernoulliLogLikelihood<T>&); \
  template void bernoulli_log_likelihood_backward(Cuda, const BernoulliLogLikelihoodBackward<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)
LINEAVAE_INSTANTIATE(Float16)
LINEAVAE_INSTANTIATE(BFloat16)

}  // namespace lineavae
