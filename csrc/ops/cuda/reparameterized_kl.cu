// Forward: a group of lanes per row, kWidth latents per lane and step, then a shuffle for the KL. Backward: kWidth
// latents per thread. Their noise, for each sample, comes from one counter of Philox; where latents do not begin at a
// multiple of kWidth it comes from two, and where vectors would not be aligned latents are loaded one by one.
// Everything is read and written once; accumulation is in float, or double for double. Deterministic.
#include "common/cuda.cuh"
#include "ops/reparameterized_kl.h"

namespace lineavae {
namespace cuda {

// 16 bytes in the accumulation type: of noise a counter, or half of one for double.
template <class T>
constexpr int kWidth = 16 / sizeof(accumulate_t<T>);

// Per multiprocessor at least, so that the registers suffice.
template <class T, bool kVectors>
constexpr int kBlocks = sizeof(accumulate_t<T>) == 8 ? 2
                        : kVectors                   ? 4
                                                     : 3;

// The first `count` elements; with kVectors all of them, aligned.
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

template <class T, bool kVectors, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kVectors>)
    reparameterized_kl_rows(const ReparameterizedKL<T> a) {
  using A = accumulate_t<T>;
  constexpr int kSize = kWidth<T>;
  const int64_t row_of_all = thread_index() / kLanes;
  A sum = 0;
  if (row_of_all < a.models * a.rows) {
    const int64_t model = row_of_all / a.rows, row = row_of_all - model * a.rows, of_model = a.rows * a.latents;
    const PhiloxKey key = key_of(a.seed[model]);
    const A* weight = a.kl_weight.of(model, a.latents);
#pragma unroll 1
    for (int64_t k = threadIdx.x % kLanes * kSize; k < a.latents; k += kLanes * kSize) {
      const int count = kVectors || a.latents - k >= kSize ? kSize : static_cast<int>(a.latents - k);
      const int64_t index = row * a.latents + k;
      const Vector<T, kSize> mean = load_some<kVectors, kSize>(a.mean + model * of_model + index, count);
      const Vector<T, kSize> logvar = load_some<kVectors, kSize>(a.logvar + model * of_model + index, count);
      A rho[kSize];
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const A w = i >= count ? A(0) : weight == nullptr ? A(1) : weight[k + i];
        const GaussianElement<A> element = gaussian_element(load(mean.at[i]), load(logvar.at[i]), w);
        rho[i] = element.rho;
        sum += element.kl;
      }
#pragma unroll 1
      for (int64_t sample = 0; sample < a.samples; ++sample) {
        const Vector<A, kSize> noise = make_noise<kVectors, A>(key, sample * of_model + index);
        Vector<A, kSize> z;
#pragma unroll
        for (int i = 0; i < kSize; ++i) z.at[i] = gaussian_sample(load(mean.at[i]), rho[i], noise.at[i]);
        store_some<kVectors>(a.z + (model * a.samples + sample) * of_model + index, count, z);
      }
    }
  }
  sum = warp_sum<kLanes>(sum);
  if (row_of_all < a.models * a.rows && threadIdx.x % kLanes == 0) a.kl[row_of_all] = sum;
}

// The vectors of a row begin at its first latent.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kVectors>)
    reparameterized_kl_gradients(const ReparameterizedKLBackward<T> a) {
  using A = accumulate_t<T>;
  constexpr int kSize = kWidth<T>;
  const int64_t vectors = (a.latents + kSize - 1) / kSize;
  const int64_t row_of_all = thread_index() / vectors, k = (thread_index() - row_of_all * vectors) * kSize;
  if (row_of_all >= a.models * a.rows) return;
  const int count = kVectors || a.latents - k >= kSize ? kSize : static_cast<int>(a.latents - k);
  const int64_t model = row_of_all / a.rows, of_model = a.rows * a.latents;
  // among all models, and within one; with kVectors a multiple of kSize that the compiler sees to be one
  const int64_t place = kVectors ? thread_index() * kSize : row_of_all * a.latents + k;
  const int64_t index = place - model * of_model;
  const PhiloxKey key = key_of(a.seed[model]);
  A sum[kSize] = {}, product[kSize] = {};
#pragma unroll 1
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    const Vector<A, kSize> grad =
        load_some<kVectors, kSize>(a.grad_z + (model * a.samples + sample) * of_model + index, count);
    const Vector<A, kSize> noise = make_noise<kVectors, A>(key, sample * of_model + index);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      sum[i] += grad.at[i];
      product[i] = multiply_add(grad.at[i], noise.at[i], product[i]);
    }
  }
  const A* weight = a.kl_weight.of(model, a.latents);
  A of_kl[kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) of_kl[i] = a.grad_kl[row_of_all];
  if (weight != nullptr) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) of_kl[i] *= i < count ? weight[k + i] : A(0);
  }
  const Vector<T, kSize> mean = load_some<kVectors, kSize>(a.mean + place, count);
  const Vector<T, kSize> logvar = load_some<kVectors, kSize>(a.logvar + place, count);
  Vector<T, kSize> grad_mean, grad_logvar;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const GaussianGradients<A> gradients =
        gaussian_gradients(load(mean.at[i]), load(logvar.at[i]), sum[i], product[i], of_kl[i]);
    store(gradients.mean, grad_mean.at[i]);
    store(gradients.logvar, grad_logvar.at[i]);
  }
  store_some<kVectors>(a.grad_mean + place, count, grad_mean);
  store_some<kVectors>(a.grad_logvar + place, count, grad_logvar);
}

}  // namespace cuda

template <class T>
void reparameterized_kl(Cuda device, const ReparameterizedKL<T>& a) {
  using namespace cuda;
  const int64_t rows = a.models * a.rows;
  if (a.latents % kWidth<T> != 0 || !are_aligned<kWidth<T>>(a.mean, a.logvar, a.z)) {
    launch(&reparameterized_kl_rows<T, false, 32>, blocks_of_threads(rows * 32), kThreads, device, a);
  } else if (a.latents > 8 * kWidth<T>) {
    launch(&reparameterized_kl_rows<T, true, 32>, blocks_of_threads(rows * 32), kThreads, device, a);
  } else {
    launch(&reparameterized_kl_rows<T, true, 8>, blocks_of_threads(rows * 8), kThreads, device, a);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, reparameterized_kl, ReparameterizedKL)

template <class T>
void reparameterized_kl_backward(Cuda device, const ReparameterizedKLBackward<T>& a) {
  using namespace cuda;
  const int64_t vectors = a.models * a.rows * ((a.latents + kWidth<T> - 1) / kWidth<T>);
  if (a.latents % kWidth<T> == 0 && are_aligned<kWidth<T>>(a.mean, a.logvar, a.grad_z, a.grad_mean, a.grad_logvar)) {
    launch(&reparameterized_kl_gradients<T, true>, blocks_of_threads(vectors), kThreads, device, a);
  } else {
    launch(&reparameterized_kl_gradients<T, false>, blocks_of_threads(vectors), kThreads, device, a);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, reparameterized_kl_backward, ReparameterizedKLBackward)

}  // namespace lineavae
