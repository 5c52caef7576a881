#include "ops/cuda/gaussian_kl.cuh"

namespace lineavae {

#define LINEAVAE_INSTANTIATE(T)                                                            \
  template void gaussian_kl<Reduction::kRow>(Cuda, const GaussianKL<T>&);                  \
  template void gaussian_kl<Reduction::kNone>(Cuda, const GaussianKL<T>&);                 \
  template void gaussian_kl_backward<Reduction::kRow>(Cuda, const GaussianKLBackward<T>&); \
  template void gaussian_kl_backward<Reduction::kNone>(Cuda, const GaussianKLBackward<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)
LINEAVAE_INSTANTIATE(Float16)
LINEAVAE_INSTANTIATE(BFloat16)

}  // namespace lineavae
