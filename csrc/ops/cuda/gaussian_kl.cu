// Row sums: a group of lanes per row, kWidth latents per lane and step, then a shuffle; unrolled steps would take the
// registers of more warps than their loads are worth. Elements and gradients: kWidth elements per thread. Everything is
// read and written once; accumulation is in float, or double for double. Deterministic.
#include "common/cuda.cuh"
#include "ops/gaussian_kl.h"

namespace lineavae {
namespace cuda {

// kLanes lanes per row, so that short rows do not leave most of a warp idle.
template <class T, int kWidth, int kLanes>
__global__ void __launch_bounds__(kThreads) gaussian_kl_rows(const GaussianKL<T> a) {
  const int64_t row = thread_index() / kLanes;
  accumulate_t<T> sum = 0;
  if (row < a.rows) {
    const accumulate_t<T>* weight = a.kl_weight.of(row, a.latents);
#pragma unroll 1
    for (int64_t k = threadIdx.x % kLanes * kWidth; k < a.latents; k += kLanes * kWidth) {
      const auto mean = load_vector<kWidth>(a.mean + row * a.latents + k);
      const auto logvar = load_vector<kWidth>(a.logvar + row * a.latents + k);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const accumulate_t<T> w = weight == nullptr ? accumulate_t<T>(1) : weight[k + i];
        sum += gaussian_kl_element(load(mean.at[i]), load(logvar.at[i]), w);
      }
    }
  }
  sum = warp_sum<kLanes>(sum);
  if (row < a.rows && threadIdx.x % kLanes == 0) a.kl[row] = sum;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) gaussian_kl_elements(const GaussianKL<T> a) {
  const int64_t index = thread_index() * kWidth;
  if (index >= a.rows * a.latents) return;
  const auto mean = load_vector<kWidth>(a.mean + index);
  const auto logvar = load_vector<kWidth>(a.logvar + index);
  Vector<accumulate_t<T>, kWidth> kl;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) kl.at[i] = gaussian_kl_element(load(mean.at[i]), load(logvar.at[i]));
  store_vector(a.kl + index, kl);
}

// With kWidth > 1 the latents are a multiple of it, so that a vector lies within one row.
template <Reduction R, class T, int kWidth>
__global__ void __launch_bounds__(kThreads) gaussian_kl_gradients(const GaussianKLBackward<T> a) {
  const int64_t index = thread_index() * kWidth;
  if (index >= a.rows * a.latents) return;
  Vector<accumulate_t<T>, kWidth> grad;
  if constexpr (R == Reduction::kNone) {
    grad = load_vector<kWidth>(a.grad + index);
  } else {
    const int64_t row = index / a.latents, k = index - row * a.latents;
    const accumulate_t<T> of_row = a.grad[row];
    const accumulate_t<T>* weight = a.kl_weight.of(row, a.latents);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) grad.at[i] = weight == nullptr ? of_row : of_row * weight[k + i];
  }
  const auto mean = load_vector<kWidth>(a.mean + index);
  const auto logvar = load_vector<kWidth>(a.logvar + index);
  Vector<T, kWidth> grad_mean, grad_logvar;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    store(weighted(grad.at[i], load(mean.at[i])), grad_mean.at[i]);
    store(gaussian_kl_grad_logvar(grad.at[i], load(logvar.at[i])), grad_logvar.at[i]);
  }
  store_vector(a.grad_mean + index, grad_mean);
  store_vector(a.grad_logvar + index, grad_logvar);
}

}  // namespace cuda

template <class T>
void gaussian_kl(Cuda device, const GaussianKL<T>& a) {
  using namespace cuda;
  constexpr int kWidth = kFullWidth<T>;
  const bool vectors = a.latents % kWidth == 0 && are_aligned<kWidth>(a.mean, a.logvar);
  if (a.reduction == Reduction::kNone) {
    if (vectors && are_aligned<kWidth>(a.kl)) {
      launch(&gaussian_kl_elements<T, kWidth>, blocks_of_threads(a.rows * a.latents / kWidth), kThreads, device, a);
    } else {
      launch(&gaussian_kl_elements<T, 1>, blocks_of_threads(a.rows * a.latents), kThreads, device, a);
    }
  } else if (!vectors) {
    launch(&gaussian_kl_rows<T, 1, 32>, blocks_of_threads(a.rows * 32), kThreads, device, a);
  } else if (a.latents > 8 * kWidth) {
    launch(&gaussian_kl_rows<T, kWidth, 32>, blocks_of_threads(a.rows * 32), kThreads, device, a);
  } else {
    launch(&gaussian_kl_rows<T, kWidth, 8>, blocks_of_threads(a.rows * 8), kThreads, device, a);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_kl, GaussianKL)

template <class T>
void gaussian_kl_backward(Cuda device, const GaussianKLBackward<T>& a) {
  using namespace cuda;
  constexpr int kWidth = kFullWidth<T>;
  const bool of_rows = a.reduction == Reduction::kRow;
  const bool vectors = a.latents % kWidth == 0 && are_aligned<kWidth>(a.mean, a.logvar, a.grad_mean, a.grad_logvar) &&
                       (of_rows || are_aligned<kWidth>(a.grad));
  const auto start = [&](auto of_vectors, auto of_elements) {
    const int64_t size = a.rows * a.latents;
    launch(vectors ? of_vectors : of_elements, blocks_of_threads(vectors ? size / kWidth : size), kThreads, device, a);
  };
  if (of_rows) {
    start(&gaussian_kl_gradients<Reduction::kRow, T, kWidth>, &gaussian_kl_gradients<Reduction::kRow, T, 1>);
  } else {
    start(&gaussian_kl_gradients<Reduction::kNone, T, kWidth>, &gaussian_kl_gradients<Reduction::kNone, T, 1>);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_kl_backward, GaussianKLBackward)

}  // namespace lineavae
