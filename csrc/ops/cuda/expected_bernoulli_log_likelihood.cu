#include "ops/cuda/expected_bernoulli_log_likelihood.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(T)                                          \
  template void variances(Cuda, const Variances<T>&);                    \
  template void squared_weights(Cuda, const SquaredWeights<T>&);         \
  template void expected_bernoulli(Cuda, const ExpectedBernoulli<T>&);   \
  template void posterior_gradients(Cuda, const PosteriorGradients<T>&); \
  template void bernoulli_weight_gradient(Cuda, const BernoulliWeightGradient<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)

}  // namespace lineavae
