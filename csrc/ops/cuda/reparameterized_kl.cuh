// Forward: a group of lanes per row, four latents per lane and step, one counter of Philox for the noise of each sample
// of them, then a shuffle for the KL. Backward: four latents per thread. Where a vector would not be aligned, or four
// latents do not share a counter, latents are loaded one by one and noise is made from two counters. Everything is
// read and written once; accumulation is in float, or double for double. Deterministic.
#pragma once

#include "common/cuda.cuh"
#include "ops/reparameterized_kl.h"

namespace lineavae {
namespace cuda {

constexpr int kQuad = 4;

template <class T>
struct Quad {
  T at[kQuad];
};

// 16 bytes, or all four.
template <class T>
constexpr int kWidth = sizeof(T) > 4 ? 2 : kQuad;

// The first `count` elements; with kVectors all of them, aligned.
template <bool kVectors, class T>
__device__ __forceinline__ Quad<T> load_quad(const T* p, int count) {
  Quad<T> quad{};
#pragma unroll
  for (int i = 0; i < kQuad; i += kVectors ? kWidth<T> : 1) {
    if constexpr (kVectors) {
      const auto vector = load_vector<kWidth<T>>(p + i);
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) quad.at[i + j] = vector.at[j];
    } else if (i < count) {
      quad.at[i] = p[i];
    }
  }
  return quad;
}

template <bool kVectors, class T>
__device__ __forceinline__ void store_quad(T* p, int count, const Quad<T>& quad) {
#pragma unroll
  for (int i = 0; i < kQuad; i += kVectors ? kWidth<T> : 1) {
    if constexpr (kVectors) {
      Vector<T, kWidth<T>> vector;
#pragma unroll
      for (int j = 0; j < kWidth<T>; ++j) vector.at[j] = quad.at[i + j];
      store_vector(p + i, vector);
    } else if (i < count) {
      p[i] = quad.at[i];
    }
  }
}

// The noise at index to index + 3.
template <bool kVectors, class A>
__device__ __forceinline__ void make_noise(PhiloxKey key, uint64_t index, A (&noise)[kQuad]) {
  normal_quad(key, index / kQuad, noise);
  if constexpr (!kVectors) {
    const int offset = static_cast<int>(index % kQuad);
    if (offset == 0) return;
    A next[kQuad];
    normal_quad(key, index / kQuad + 1, next);
    A shifted[kQuad];
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      shifted[i] = A(0);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        if (i + offset == j) shifted[i] = noise[j];
        if (i + offset == j + kQuad) shifted[i] = next[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) noise[i] = shifted[i];
  }
}

template <class T, bool kVectors, int kLanes>
__global__ void __launch_bounds__(kThreads) reparameterized_kl_rows(const ReparameterizedKL<T> a) {
  using A = accumulate_t<T>;
  const int64_t row_of_all = thread_index() / kLanes;
  A sum = 0;
  if (row_of_all < a.models * a.rows) {
    const int64_t model = row_of_all / a.rows, row = row_of_all - model * a.rows, of_model = a.rows * a.latents;
    const PhiloxKey key = key_of(a.seed[model]);
    const A* weight = a.kl_weight.of(model, a.latents);
#pragma unroll 1
    for (int64_t k = threadIdx.x % kLanes * kQuad; k < a.latents; k += kLanes * kQuad) {
      const int count = a.latents - k < kQuad ? static_cast<int>(a.latents - k) : kQuad;
      const int64_t index = row * a.latents + k;
      const auto mean = load_quad<kVectors>(a.mean + model * of_model + index, count);
      const auto logvar = load_quad<kVectors>(a.logvar + model * of_model + index, count);
      A sigma[kQuad];
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const GaussianElement<A> element = gaussian_element(load(mean.at[i]), load(logvar.at[i]));
        sigma[i] = element.sigma;
        if (i < count) sum += weight == nullptr ? element.kl : weight[k + i] * element.kl;
      }
#pragma unroll 1
      for (int64_t sample = 0; sample < a.samples; ++sample) {
        A noise[kQuad];
        make_noise<kVectors>(key, sample * of_model + index, noise);
        Quad<A> z;
#pragma unroll
        for (int i = 0; i < kQuad; ++i) z.at[i] = multiply_add(sigma[i], noise[i], load(mean.at[i]));
        store_quad<kVectors>(a.z + (model * a.samples + sample) * of_model + index, count, z);
      }
    }
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
  if (row_of_all < a.models * a.rows && threadIdx.x % kLanes == 0) a.kl[row_of_all] = sum;
}

// The quads of a row begin at its first latent.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) reparameterized_kl_gradients(const ReparameterizedKLBackward<T> a) {
  using A = accumulate_t<T>;
  const int64_t quads = (a.latents + kQuad - 1) / kQuad;
  const int64_t row_of_all = thread_index() / quads, k = (thread_index() - row_of_all * quads) * kQuad;
  if (row_of_all >= a.models * a.rows) return;
  const int count = a.latents - k < kQuad ? static_cast<int>(a.latents - k) : kQuad;
  const int64_t model = row_of_all / a.rows, of_model = a.rows * a.latents;
  const int64_t index = (row_of_all - model * a.rows) * a.latents + k;
  const PhiloxKey key = key_of(a.seed[model]);
  A sum[kQuad] = {}, product[kQuad] = {};
#pragma unroll 1
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    const auto grad = load_quad<kVectors>(a.grad_z + (model * a.samples + sample) * of_model + index, count);
    A noise[kQuad];
    make_noise<kVectors>(key, sample * of_model + index, noise);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      sum[i] += grad.at[i];
      product[i] = multiply_add(grad.at[i], noise[i], product[i]);
    }
  }
  const A grad_kl = a.grad_kl[row_of_all];
  const A* weight = a.kl_weight.of(model, a.latents);
  const auto mean = load_quad<kVectors>(a.mean + model * of_model + index, count);
  const auto logvar = load_quad<kVectors>(a.logvar + model * of_model + index, count);
  Quad<T> grad_mean, grad_logvar;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const A of_kl = weight == nullptr || i >= count ? grad_kl : grad_kl * weight[k + i];
    const GaussianElementBackward<A> element = gaussian_element_backward(load(logvar.at[i]));
    store(multiply_add(of_kl, load(mean.at[i]), sum[i]), grad_mean.at[i]);
    store(A(0.5) * multiply_add(of_kl, element.expm1, element.sigma * product[i]), grad_logvar.at[i]);
  }
  store_quad<kVectors>(a.grad_mean + model * of_model + index, count, grad_mean);
  store_quad<kVectors>(a.grad_logvar + model * of_model + index, count, grad_logvar);
}

}  // namespace cuda

template <class T>
void reparameterized_kl(Cuda device, const ReparameterizedKL<T>& a) {
  using namespace cuda;
  const int64_t rows = a.models * a.rows;
  if (a.latents % kQuad != 0 || !are_aligned<kQuad>(a.mean, a.logvar, a.z)) {
    launch(&reparameterized_kl_rows<T, false, 32>, blocks_of_threads(rows * 32), kThreads, device, a);
  } else if (a.latents > 8 * kQuad) {
    launch(&reparameterized_kl_rows<T, true, 32>, blocks_of_threads(rows * 32), kThreads, device, a);
  } else {
    launch(&reparameterized_kl_rows<T, true, 8>, blocks_of_threads(rows * 8), kThreads, device, a);
  }
}

template <class T>
void reparameterized_kl_backward(Cuda device, const ReparameterizedKLBackward<T>& a) {
  using namespace cuda;
  const int64_t quads = a.models * a.rows * ((a.latents + kQuad - 1) / kQuad);
  if (a.latents % kQuad == 0 && are_aligned<kQuad>(a.mean, a.logvar, a.grad_z, a.grad_mean, a.grad_logvar)) {
    launch(&reparameterized_kl_gradients<T, true>, blocks_of_threads(quads), kThreads, device, a);
  } else {
    launch(&reparameterized_kl_gradients<T, false>, blocks_of_threads(quads), kThreads, device, a);
  }
}

}  // namespace lineavae
