// One pass over the rows in memory order, rows split over threads. The sum over the latents of a row is vectorised in
// the accumulation type, so the result does not depend on the number of threads.
#include "ops/gaussian_kl.h"

#include "common/cpu.h"

namespace lineavae {
namespace {

template <Reduction R, class T>
LINEAVAE_INLINE void values(const GaussianKL<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* mean = a.mean + row * a.latents;
    const T* logvar = a.logvar + row * a.latents;
    if constexpr (R == Reduction::kRow) {
      const accumulate_t<T>* weight = a.kl_weight.of(row, a.latents);
      accumulate_t<T> sum = 0;
      if (weight == nullptr) {
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < a.latents; ++k) sum += gaussian_kl_element(load(mean[k]), load(logvar[k]));
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < a.latents; ++k) sum += gaussian_kl_element(load(mean[k]), load(logvar[k]), weight[k]);
      }
      a.kl[row] = sum;
    } else {
      accumulate_t<T>* kl = a.kl + row * a.latents;
#pragma omp simd
      for (int64_t k = 0; k < a.latents; ++k) kl[k] = gaussian_kl_element(load(mean[k]), load(logvar[k]));
    }
  }
}

template <Reduction R, bool kWeighted, class T>
LINEAVAE_INLINE void gradients_of_row(const GaussianKLBackward<T>& a, int64_t row) {
  const int64_t offset = row * a.latents;
  const T* mean = a.mean + offset;
  const T* logvar = a.logvar + offset;
  T* grad_mean = a.grad_mean + offset;
  T* grad_logvar = a.grad_logvar + offset;
  const accumulate_t<T>* weight = a.kl_weight.of(row, a.latents);
  const accumulate_t<T>* grad = R == Reduction::kRow ? a.grad + row : a.grad + offset;
#pragma omp simd
  for (int64_t k = 0; k < a.latents; ++k) {
    accumulate_t<T> upstream = R == Reduction::kRow ? grad[0] : grad[k];
    if constexpr (kWeighted) upstream *= weight[k];
    store(weighted(upstream, load(mean[k])), grad_mean[k]);
    store(gaussian_kl_grad_logvar(upstream, load(logvar[k])), grad_logvar[k]);
  }
}

template <Reduction R, class T>
LINEAVAE_INLINE void gradients(const GaussianKLBackward<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    if (R == Reduction::kRow && a.kl_weight.weight != nullptr) {
      gradients_of_row<R, true>(a, row);
    } else {
      gradients_of_row<R, false>(a, row);
    }
  }
}

#define LINEAVAE_GAUSSIAN_KL(R, T)                                                                                \
  LINEAVAE_CLONES void clone(std::integral_constant<Reduction, R>, const GaussianKL<T>& a, int64_t begin,         \
                             int64_t end) {                                                                       \
    values<R>(a, begin, end);                                                                                     \
  }                                                                                                               \
  LINEAVAE_CLONES void clone(std::integral_constant<Reduction, R>, const GaussianKLBackward<T>& a, int64_t begin, \
                             int64_t end) {                                                                       \
    gradients<R>(a, begin, end);                                                                                  \
  }
#define LINEAVAE_GAUSSIAN_KL_DTYPES(R) \
  LINEAVAE_GAUSSIAN_KL(R, float)       \
  LINEAVAE_GAUSSIAN_KL(R, double)      \
  LINEAVAE_GAUSSIAN_KL(R, Float16)     \
  LINEAVAE_GAUSSIAN_KL(R, BFloat16)
LINEAVAE_GAUSSIAN_KL_DTYPES(Reduction::kRow)
LINEAVAE_GAUSSIAN_KL_DTYPES(Reduction::kNone)

template <Reduction R, class Arguments>
void over_rows(const Arguments& a) {
  parallel_for(a.rows, a.latents,
               [&](int64_t begin, int64_t end) { clone(std::integral_constant<Reduction, R>(), a, begin, end); });
}

}  // namespace

template <Reduction R, class T>
void gaussian_kl(Cpu, const GaussianKL<T>& a) {
  over_rows<R>(a);
}

template <Reduction R, class T>
void gaussian_kl_backward(Cpu, const GaussianKLBackward<T>& a) {
  over_rows<R>(a);
}

#define LINEAVAE_INSTANTIATE(T)                                                           \
  template void gaussian_kl<Reduction::kRow>(Cpu, const GaussianKL<T>&);                  \
  template void gaussian_kl<Reduction::kNone>(Cpu, const GaussianKL<T>&);                 \
  template void gaussian_kl_backward<Reduction::kRow>(Cpu, const GaussianKLBackward<T>&); \
  template void gaussian_kl_backward<Reduction::kNone>(Cpu, const GaussianKLBackward<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)
LINEAVAE_INSTANTIATE(Float16)
LINEAVAE_INSTANTIATE(BFloat16)

}  // namespace lineavae
