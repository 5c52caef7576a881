#include "ops/cuda/reparameterized_kl.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(T)                                        \
  template void reparameterized_kl(Cuda, const ReparameterizedKL<T>&); \
  template void reparameterized_kl_backward(Cuda, const ReparameterizedKLBackward<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)
LINEAVAE_INSTANTIATE(Float16)
LINEAVAE_INSTANTIATE(BFloat16)

}  // namespace lineavae
