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
LINEAVAE_INLINE void gradients(const GaussianKLBackward<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
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
}

}  // namespace

template <class T>
LINEAVAE_INLINE void gaussian_kl_body(const GaussianKL<T>& a, int64_t begin, int64_t end) {
  a.reduction == Reduction::kRow ? values<Reduction::kRow>(a, begin, end) : values<Reduction::kNone>(a, begin, end);
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, gaussian_kl, GaussianKL, a.rows, a.latents)

template <class T>
LINEAVAE_INLINE void gaussian_kl_backward_body(const GaussianKLBackward<T>& a, int64_t begin, int64_t end) {
  if (a.reduction == Reduction::kNone) {
    gradients<Reduction::kNone, false>(a, begin, end);
  } else if (a.kl_weight.weight == nullptr) {
    gradients<Reduction::kRow, false>(a, begin, end);
  } else {
    gradients<Reduction::kRow, true>(a, begin, end);
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, gaussian_kl_backward, GaussianKLBackward, a.rows, a.latents)

}  // namespace lineavae
