// Row sums and their gradients: a tile of rows for each block (common/row_tiles.cuh). The KL of each element, and its
// gradients: a vector for each thread. Everything is read and written once; accumulation is in float, or double for
// double. Deterministic.
#include "common/row_tiles.cuh"
#include "ops/gaussian_kl.h"

namespace lineavae {
namespace cuda {

// The weights of a vector of a tile.
template <class Arguments, int kWidth>
__device__ __forceinline__ auto load_weights(const Arguments& a, const RowTiles<kWidth>& tiles, const Tile& tile,
                                             int vector) {
  const int row = tiles.row_of(vector);
  return load_vector<kWidth>(a.kl_weight.of(tile.row + row, a.latents) + tiles.column_of(tile, vector, row) * kWidth);
}

template <bool kWeighted, class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    gaussian_kl_rows(const GaussianKL<T> a, const RowTiles<kWidth> tiles, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  LINEAVAE_SHARED(numbers, A[RowTiles<kWidth>::kMost]);
  const Tile tile = tiles.tile(0);
  const int64_t first = tile.row * a.latents + tile.column * kWidth;
#pragma unroll 4
  for (int step = 0; step < RowTiles<kWidth>::kSteps; ++step) {
    const int vector = threadIdx.x + step * kThreads;
    if (vector < tile.vectors()) {
      const auto mean = load_vector<kWidth>(a.mean + first + vector * kWidth);
      const auto logvar = load_vector<kWidth>(a.logvar + first + vector * kWidth);
      Vector<A, kWidth> weight;
      if constexpr (kWeighted) weight = load_weights(a, tiles, tile, vector);
      A sum = 0;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sum += gaussian_kl_element(load(mean.at[i]), load(logvar.at[i]), kWeighted ? weight.at[i] : A(1));
      }
      numbers[vector] = sum;
    }
  }
  __syncthreads();
  tiles.store_sums(tile, numbers, sums);
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

template <class T, int kWidth>
__device__ __forceinline__ void store_gradients(const Vector<accumulate_t<T>, kWidth>& grad, const T* mean_at,
                                                const T* logvar_at, T* grad_mean_at, T* grad_logvar_at) {
  const auto mean = load_vector<kWidth>(mean_at);
  const auto logvar = load_vector<kWidth>(logvar_at);
  Vector<T, kWidth> grad_mean, grad_logvar;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    store(weighted(grad.at[i], load(mean.at[i])), grad_mean.at[i]);
    store(gaussian_kl_grad_logvar(grad.at[i], load(logvar.at[i])), grad_logvar.at[i]);
  }
  store_vector(grad_mean_at, grad_mean);
  store_vector(grad_logvar_at, grad_logvar);
}

template <bool kWeighted, class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    gaussian_kl_row_gradients(const GaussianKLBackward<T> a, const RowTiles<kWidth> tiles) {
  const Tile tile = tiles.tile(0);
  const int64_t first = tile.row * a.latents + tile.column * kWidth;
  const T *const mean = a.mean + first, *const logvar = a.logvar + first;
  T *const grad_mean = a.grad_mean + first, *const grad_logvar = a.grad_logvar + first;
#pragma unroll 1
  for (int vector = threadIdx.x; vector < tile.vectors(); vector += kThreads) {
    const accumulate_t<T> of_row = a.grad[tile.row + tiles.row_of(vector)];
    Vector<accumulate_t<T>, kWidth> grad;
    if constexpr (kWeighted) grad = load_weights(a, tiles, tile, vector);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) grad.at[i] = kWeighted ? of_row * grad.at[i] : of_row;
    store_gradients(grad, vector_at<kWidth>(mean, vector), vector_at<kWidth>(logvar, vector),
                    vector_at<kWidth>(grad_mean, vector), vector_at<kWidth>(grad_logvar, vector));
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) gaussian_kl_gradients(const GaussianKLBackward<T> a) {
  const int64_t index = thread_index() * kWidth;
  if (index >= a.rows * a.latents) return;
  store_gradients(load_vector<kWidth>(a.grad + index), a.mean + index, a.logvar + index, a.grad_mean + index,
                  a.grad_logvar + index);
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
    return;
  }
  const auto start = [&](const auto& tiles, auto weighted, auto alike) {
    accumulate_t<T>* const sums = tiles.pieces() == 1 ? a.kl : a.sums;
    launch(a.kl_weight.weight == nullptr ? alike : weighted, tiles.grid(), tiles.threads(), device, a, tiles, sums);
    add_pieces(tiles, a.rows, sums, a.kl, device);
  };
  if (vectors && are_aligned<kWidth>(a.kl_weight.weight)) {
    start(RowTiles<kWidth>(1, a.rows, a.latents), &gaussian_kl_rows<true, T, kWidth>,
          &gaussian_kl_rows<false, T, kWidth>);
  } else {
    start(RowTiles<1>(1, a.rows, a.latents), &gaussian_kl_rows<true, T, 1>, &gaussian_kl_rows<false, T, 1>);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_kl, GaussianKL)

template <class T>
void gaussian_kl_backward(Cuda device, const GaussianKLBackward<T>& a) {
  using namespace cuda;
  constexpr int kWidth = kFullWidth<T>;
  const bool vectors = a.latents % kWidth == 0 && are_aligned<kWidth>(a.mean, a.logvar, a.grad_mean, a.grad_logvar);
  if (a.reduction == Reduction::kNone) {
    if (vectors && are_aligned<kWidth>(a.grad)) {
      launch(&gaussian_kl_gradients<T, kWidth>, blocks_of_threads(a.rows * a.latents / kWidth), kThreads, device, a);
    } else {
      launch(&gaussian_kl_gradients<T, 1>, blocks_of_threads(a.rows * a.latents), kThreads, device, a);
    }
    return;
  }
  const auto start = [&](const auto& tiles, auto weighted, auto alike) {
    launch(a.kl_weight.weight == nullptr ? alike : weighted, tiles.grid(), tiles.threads(), device, a, tiles);
  };
  if (vectors && are_aligned<kWidth>(a.kl_weight.weight)) {
    start(RowTiles<kWidth>(1, a.rows, a.latents), &gaussian_kl_row_gradients<true, T, kWidth>,
          &gaussian_kl_row_gradients<false, T, kWidth>);
  } else {
    start(RowTiles<1>(1, a.rows, a.latents), &gaussian_kl_row_gradients<true, T, 1>,
          &gaussian_kl_row_gradients<false, T, 1>);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_kl_backward, GaussianKLBackward)

}  // namespace lineavae
