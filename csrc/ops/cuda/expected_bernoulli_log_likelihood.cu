#include "ops/cuda/expected_bernoulli_log_likelihood.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(T)                                          \
  template void second_moments(Cuda, const SecondMoments<T>&);           \
  template void expected_bernoulli(Cuda, const ExpectedBernoulli<T>&);   \
  template void posterior_gradients(Cuda, const PosteriorGradients<T>&); \
  template void bernoulli_weight_gradient(Cuda, const BernoulliWeightGradient<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)

}  // namespace lineavae
