// A tile of rows for each block (common/row_tiles.cuh), kWidth latents to a vector. Their noise, for each sample, comes
// from one counter of Philox; where latents do not begin at a multiple of kWidth it comes from two, and where vectors
// would not be aligned latents are loaded one by one. Everything is read and written once; accumulation is in float, or
// double for double. Deterministic.
#include "common/row_tiles.cuh"
#include "ops/reparameterized_kl.h"

namespace lineavae {
namespace cuda {

// 16 bytes in the accumulation type: of noise a counter, or half of one for double.
template <class T>
constexpr int kWidth = 16 / sizeof(accumulate_t<T>);

// Per multiprocessor at least: as many as need no spilled registers.
template <class T, bool kVectors>
constexpr int kBlocks = sizeof(accumulate_t<T>) == 8 ? 2
                        : kVectors                   ? 4
                                                     : 3;

// The first `count` elements, and 0 for the others, whose KL is 0; with kVectors all of them, aligned.
template <bool kVectors, int kSize, class T>
__device__ __forceinline__ Vector<T, kSize> load_some(const T* p, int count) {
  if constexpr (kVectors) return load_vector<kSize>(p);
  Vector<T, kSize> values{};
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (i < count) values.at[i] = p[i];
  }
  return values;
}

template <bool kVectors, class T, int kSize>
__device__ __forceinline__ void store_some(T* p, int count, const Vector<T, kSize>& values) {
  if constexpr (kVectors) {
    store_vector(p, values);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i < count) p[i] = values.at[i];
    }
  }
}

__device__ __forceinline__ void make_vector_of_noise(PhiloxKey key, uint64_t vector, float* noise) {
  normal_quad(key, vector, noise);
}
__device__ __forceinline__ void make_vector_of_noise(PhiloxKey key, uint64_t vector, double* noise) {
  normal_half_quad(key, vector, noise);
}

// The noise from index on; with kVectors a multiple of kWidth.
template <bool kVectors, class A>
__device__ __forceinline__ Vector<A, kWidth<A>> make_noise(PhiloxKey key, uint64_t index) {
  constexpr int kSize = kWidth<A>;
  Vector<A, kSize> noise;
  if constexpr (kVectors) {
    make_vector_of_noise(key, index / kSize, noise.at);
    return noise;
  }
  A both[2 * kSize];
  make_vector_of_noise(key, index / kSize, both);
  make_vector_of_noise(key, index / kSize + 1, both + kSize);
#pragma unroll
  for (int step = 1; step < kSize; step *= 2) {
#pragma unroll
    for (int i = 0; i + step < 2 * kSize; ++i) both[i] = index & step ? both[i + step] : both[i];
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) noise.at[i] = both[i];
  return noise;
}

// A vector of a tile. Where latents are no multiple of kWidth the last vector of a row has fewer than that.
struct Place {
  int row, vector, offset;  // in the tile: its row, itself, and its first element
  int64_t column;           // in the row: its first latent
  int count;
};

template <bool kVectors, int kSize>
__device__ __forceinline__ Place place_of(const RowTiles<kSize>& tiles, const Tile& tile, int vector, int64_t latents) {
  const int row = tiles.row_of(vector);
  const int64_t column = tiles.column_of(tile, vector, row) * kSize;
  if constexpr (kVectors) {
    return {row, vector, vector * kSize, column, kSize};
  } else {
    return {row, vector, static_cast<int>(row * latents + column - tile.column * kSize), column,
            latents - column < kSize ? static_cast<int>(latents - column) : kSize};
  }
}

// Of what an array has at the tile's first element.
template <bool kVectors, int kSize, class T>
__device__ __forceinline__ T* address_of(T* tile, const Place& place) {
  if constexpr (kVectors) return vector_at<kSize>(tile, place.vector);
  return tile + place.offset;
}

template <bool kVectors, bool kWeighted, class T>
__global__ void __launch_bounds__(kThreads, resident(kBlocks<T, kVectors> + (kVectors && !kWeighted)))
    reparameterized_kl_rows(const ReparameterizedKL<T> a, const RowTiles<kWidth<T>> tiles, accumulate_t<T>* sums) {
  using A = accumulate_t<T>;
  constexpr int kSize = kWidth<T>;
  LINEAVAE_SHARED(numbers, A[RowTiles<kSize>::kMost]);
  const int64_t model = tiles.matrix(), of_model = a.rows * a.latents;
  const Tile tile = tiles.tile(model);
  const int64_t first = tile.row * a.latents + tile.column * kSize;
  const T *const mean_of_tile = a.mean + model * of_model + first, *const logvar_of_tile =
                                                                       a.logvar + model * of_model + first;
  A* const z_of_tile = a.z + model * a.samples * of_model + first;
  const PhiloxKey key = key_of(a.seed[model]);
  A* number = numbers + threadIdx.x;
#pragma unroll 1
  for (int vector = threadIdx.x; vector < tile.vectors(); vector += kThreads, number += kThreads) {
    const Place place = place_of<kVectors>(tiles, tile, vector, a.latents);
    const auto mean = load_some<kVectors, kSize>(address_of<kVectors, kSize>(mean_of_tile, place), place.count);
    const auto logvar = load_some<kVectors, kSize>(address_of<kVectors, kSize>(logvar_of_tile, place), place.count);
    Vector<A, kSize> weight;
    if constexpr (kWeighted) {
      weight = load_some<kVectors, kSize>(a.kl_weight.of(model, a.latents) + place.column, place.count);
    }
    A rho[kSize], sum = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const GaussianElement<A> element =
          gaussian_element(load(mean.at[i]), load(logvar.at[i]), kWeighted ? weight.at[i] : A(1));
      rho[i] = element.rho;
      sum += element.kl;
    }
    *number = sum;
    A* z_of_sample = address_of<kVectors, kSize>(z_of_tile, place);
    int64_t index = first + place.offset, sample = a.samples;  // at least one
#pragma unroll 1
    do {
      const Vector<A, kSize> noise = make_noise<kVectors, A>(key, index);
      Vector<A, kSize> z;
#pragma unroll
      for (int i = 0; i < kSize; ++i) z.at[i] = gaussian_sample(load(mean.at[i]), rho[i], noise.at[i]);
      store_some<kVectors>(z_of_sample, place.count, z);
      z_of_sample += of_model;
      index += of_model;
    } while (--sample > 0);
  }
  __syncthreads();
  tiles.store_sums(tile, numbers, sums + model * a.rows * tiles.pieces());
}

template <bool kVectors, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kVectors>)
    reparameterized_kl_gradients(const ReparameterizedKLBackward<T> a, const RowTiles<kWidth<T>> tiles) {
  using A = accumulate_t<T>;
  constexpr int kSize = kWidth<T>;
  const int64_t model = tiles.matrix(), of_model = a.rows * a.latents;
  const Tile tile = tiles.tile(model);
  const int64_t first = tile.row * a.latents + tile.column * kSize, of_all = model * of_model + first;
  const T *const mean_of_tile = a.mean + of_all, *const logvar_of_tile = a.logvar + of_all;
  T *const grad_mean_of_tile = a.grad_mean + of_all, *const grad_logvar_of_tile = a.grad_logvar + of_all;
  const A* const grad_z_of_tile = a.grad_z + model * a.samples * of_model + first;
  const A* const grad_kl_of_tile = a.grad_kl + model * a.rows + tile.row;
  const A* const weights = a.kl_weight.of(model, a.latents);
  const PhiloxKey key = key_of(a.seed[model]);
#pragma unroll 1
  for (int vector = threadIdx.x; vector < tile.vectors(); vector += kThreads) {
    const Place place = place_of<kVectors>(tiles, tile, vector, a.latents);
    // all loads before the noise
    const auto mean = load_some<kVectors, kSize>(address_of<kVectors, kSize>(mean_of_tile, place), place.count);
    const auto logvar = load_some<kVectors, kSize>(address_of<kVectors, kSize>(logvar_of_tile, place), place.count);
    const A grad_kl = grad_kl_of_tile[place.row];
    Vector<A, kSize> of_kl{};
    if (weights != nullptr) of_kl = load_some<kVectors, kSize>(weights + place.column, place.count);
#pragma unroll
    for (int i = 0; i < kSize; ++i) of_kl.at[i] = weights != nullptr ? grad_kl * of_kl.at[i] : grad_kl;
    A sum[kSize] = {}, product[kSize] = {};
    const A* grad_of_sample = address_of<kVectors, kSize>(grad_z_of_tile, place);
    int64_t index = first + place.offset;
#pragma unroll 1
    for (int64_t sample = a.samples; sample > 0; --sample) {
      const Vector<A, kSize> grad = load_some<kVectors, kSize>(grad_of_sample, place.count);
      const Vector<A, kSize> noise = make_noise<kVectors, A>(key, index);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sum[i] += grad.at[i];
        product[i] = multiply_add(grad.at[i], noise.at[i], product[i]);
      }
      grad_of_sample += of_model;
      index += of_model;
    }
    Vector<T, kSize> grad_mean, grad_logvar;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const GaussianGradients<A> gradients =
          gaussian_gradients(load(mean.at[i]), load(logvar.at[i]), sum[i], product[i], of_kl.at[i]);
      store(gradients.mean, grad_mean.at[i]);
      store(gradients.logvar, grad_logvar.at[i]);
    }
    store_some<kVectors>(address_of<kVectors, kSize>(grad_mean_of_tile, place), place.count, grad_mean);
    store_some<kVectors>(address_of<kVectors, kSize>(grad_logvar_of_tile, place), place.count, grad_logvar);
  }
}

}  // namespace cuda

template <class T>
void reparameterized_kl(Cuda device, const ReparameterizedKL<T>& a) {
  using namespace cuda;
  constexpr int kSize = kWidth<T>;
  const RowTiles<kSize> tiles(a.models, a.rows, a.latents);
  accumulate_t<T>* const sums = tiles.pieces() == 1 ? a.kl : a.sums;
  const auto start = [&](auto weighted, auto alike) {
    launch(a.kl_weight.weight == nullptr ? alike : weighted, tiles.grid(), tiles.threads(), device, a, tiles, sums);
  };
  if (a.latents % kSize == 0 && are_aligned<kSize>(a.mean, a.logvar, a.z) && are_aligned<kSize>(a.kl_weight.weight)) {
    start(&reparameterized_kl_rows<true, true, T>, &reparameterized_kl_rows<true, false, T>);
  } else {
    start(&reparameterized_kl_rows<false, true, T>, &reparameterized_kl_rows<false, false, T>);
  }
  add_pieces(tiles, a.models * a.rows, sums, a.kl, device);
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, reparameterized_kl, ReparameterizedKL)

template <class T>
void reparameterized_kl_backward(Cuda device, const ReparameterizedKLBackward<T>& a) {
  using namespace cuda;
  constexpr int kSize = kWidth<T>;
  const RowTiles<kSize> tiles(a.models, a.rows, a.latents);
  const bool vectors = a.latents % kSize == 0 && are_aligned<kSize>(a.kl_weight.weight) &&
                       are_aligned<kSize>(a.mean, a.logvar, a.grad_z, a.grad_mean, a.grad_logvar);
  launch(vectors ? &reparameterized_kl_gradients<true, T> : &reparameterized_kl_gradients<false, T>, tiles.grid(),
         tiles.threads(), device, a, tiles);
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, reparameterized_kl_backward, ReparameterizedKLBackward)

}  // namespace lineavae
