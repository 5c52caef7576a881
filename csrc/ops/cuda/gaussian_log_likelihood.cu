#include "ops/cuda/gaussian_log_likelihood.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(R, T)                                                 \
  template void gaussian_log_likelihood<R>(Cuda, const GaussianLogLikelihood<T>&); \
  template void gaussian_log_likelihood_backward<R>(Cuda, const GaussianLogLikelihoodBackward<T>&);
#define LINEAVAE_INSTANTIATE_DTYPE(T)      \
  LINEAVAE_INSTANTIATE(Noise::kRow, T)     \
  LINEAVAE_INSTANTIATE(Noise::kFeature, T) \
  LINEAVAE_INSTANTIATE(Noise::kElement, T)
LINEAVAE_INSTANTIATE_DTYPE(float)
LINEAVAE_INSTANTIATE_DTYPE(double)
LINEAVAE_INSTANTIATE_DTYPE(Float16)
LINEAVAE_INSTANTIATE_DTYPE(BFloat16)
#define LINEAVAE_INSTANTIATE_MEAN(T)                                                                      \
  template void gaussian_log_likelihood_mean<Noise::kRow>(Cuda, const GaussianLogLikelihoodMean<T>&);     \
  template void gaussian_log_likelihood_mean<Noise::kFeature>(Cuda, const GaussianLogLikelihoodMean<T>&); \
  template void gaussian_log_likelihood_mean<Noise::kElement>(Cuda, const GaussianLogLikelihoodMean<T>&);
LINEAVAE_INSTANTIATE_MEAN(float)
LINEAVAE_INSTANTIATE_MEAN(double)

}  // namespace lineavae
