#include "ops/cuda/linear_vae_statistics.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(T)                                          \
  template void subtract_mean(Cuda, const OffsetArguments<T>&);          \
  template void distortion_parts(Cuda, const DistortionArguments<T>&);   \
  template void elbo(Cuda, const ElboArguments<T>&);                     \
  template void latent_gradients(Cuda, const LatentGradients<T>&);       \
  template void weight_gradients(Cuda, const WeightGradients<T>&);       \
  template void remaining_gradients(Cuda, const RemainingGradients<T>&); \
  template void diagonal_product(Cuda, const DiagonalProduct<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)

}  // namespace lineavae
