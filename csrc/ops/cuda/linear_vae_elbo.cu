#include "ops/cuda/linear_vae_elbo.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(T)                                    \
  template void centre(Cuda, const CentreArguments<T>&);           \
  template void column_norms(Cuda, const ColumnNormArguments<T>&); \
  template void latent_constants(Cuda, const LatentConstants<T>&); \
  template void residual(Cuda, const ResidualArguments<T>&);       \
  template void code_gradients(Cuda, const CodeGradients<T>&);     \
  template void sample_sums(Cuda, const SampleSums<T>&);           \
  template void decoder_gradients(Cuda, const DecoderGradients<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)

}  // namespace lineavae
