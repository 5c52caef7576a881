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

// Per multiprocessor at least, so that the registers suffice.
template <class T, bool kVectors>
constexpr int kBlocks = sizeof(accumulate_t<T>) == 8 ? 2
                        : kVectors                   ? 4
                                                     : 3;

// Of as few vectors as there can be.
template <class T>
struct Quad {
  static constexpr int kWidth = sizeof(T) > 4 ? 2 : kQuad;
  Vector<T, kWidth> part[kQuad / kWidth];

  __device__ __forceinline__ T& operator[](int i) { return part[i / kWidth].at[i % kWidth]; }
  __device__ __forceinline__ const T& operator[](int i) const { return part[i / kWidth].at[i % kWidth]; }
};

// The first `count` elements; with kVectors all of them, aligned.
template <bool kVectors, class T>
__device__ __forceinline__ Quad<T> load_quad(const T* p, int count) {
  constexpr int kWidth = Quad<T>::kWidth;
  Quad<T> quad{};
  if constexpr (kVectors) {
#pragma unroll
    for (int i = 0; i < kQuad; i += kWidth) quad.part[i / kWidth] = load_vector<kWidth>(p + i);
  } else {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i < count) quad[i] = p[i];
    }
  }
  return quad;
}

template <bool kVectors, class T>
__device__ __forceinline__ void store_quad(T* p, int count, const Quad<T>& quad) {
  constexpr int kWidth = Quad<T>::kWidth;
  if constexpr (kVectors) {
#pragma unroll
    for (int i = 0; i < kQuad; i += kWidth) store_vector(p + i, quad.part[i / kWidth]);
  } else {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i < count) p[i] = quad[i];
    }
  }
}

// The noise at index to index + 3; with kVectors they share a counter.
template <bool kVectors, class A>
__device__ __forceinline__ Quad<A> make_noise(PhiloxKey key, uint64_t index) {
  Quad<A> noise;
  if constexpr (kVectors) {
    normal_quad(key, index / kQuad, &noise[0]);
    return noise;
  }
  A both[2 * kQuad];
  normal_quad(key, index / kQuad, both);
  normal_quad(key, index / kQuad + 1, both + kQuad);
  const bool by_one = index & 1, by_two = index & 2;
#pragma unroll
  for (int i = 0; i < kQuad + 2; ++i) both[i] = by_one ? both[i + 1] : both[i];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) noise[i] = by_two ? both[i + 2] : both[i];
  return noise;
}

template <class T, bool kVectors, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kVectors>)
    reparameterized_kl_rows(const ReparameterizedKL<T> a) {
  using A = accumulate_t<T>;
  const int64_t row_of_all = thread_index() / kLanes;
  A sum = 0;
  if (row_of_all < a.models * a.rows) {
    const int64_t model = row_of_all / a.rows, row = row_of_all - model * a.rows, of_model = a.rows * a.latents;
    const PhiloxKey key = key_of(a.seed[model]);
    const A* weight = a.kl_weight.of(model, a.latents);
#pragma unroll 1
    for (int64_t k = threadIdx.x % kLanes * kQuad; k < a.latents; k += kLanes * kQuad) {
      const int count = kVectors || a.latents - k >= kQuad ? kQuad : static_cast<int>(a.latents - k);
      const int64_t index = row * a.latents + k;
      const Quad<T> mean = load_quad<kVectors>(a.mean + model * of_model + index, count);
      const Quad<T> logvar = load_quad<kVectors>(a.logvar + model * of_model + index, count);
      A sigma[kQuad];
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const GaussianElement<A> element = gaussian_element(load(mean[i]), load(logvar[i]));
        sigma[i] = element.sigma;
        if (i < count) sum += weight == nullptr ? element.kl : weight[k + i] * element.kl;
      }
#pragma unroll 1
      for (int64_t sample = 0; sample < a.samples; ++sample) {
        const Quad<A> noise = make_noise<kVectors, A>(key, sample * of_model + index);
        Quad<A> z;
#pragma unroll
        for (int i = 0; i < kQuad; ++i) z[i] = multiply_add(sigma[i], noise[i], load(mean[i]));
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
__global__ void __launch_bounds__(kThreads, kBlocks<T, kVectors>)
    reparameterized_kl_gradients(const ReparameterizedKLBackward<T> a) {
  using A = accumulate_t<T>;
  const int64_t quads = (a.latents + kQuad - 1) / kQuad;
  const int64_t row_of_all = thread_index() / quads, k = (thread_index() - row_of_all * quads) * kQuad;
  if (row_of_all >= a.models * a.rows) return;
  const int count = kVectors || a.latents - k >= kQuad ? kQuad : static_cast<int>(a.latents - k);
  const int64_t model = row_of_all / a.rows, of_model = a.rows * a.latents;
  // among all models, and within one; with kVectors a multiple of kQuad that the compiler sees to be one
  const int64_t place = kVectors ? thread_index() * kQuad : row_of_all * a.latents + k;
  const int64_t index = place - model * of_model;
  const PhiloxKey key = key_of(a.seed[model]);
  A sum[kQuad] = {}, product[kQuad] = {};
#pragma unroll 1
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    const Quad<A> grad = load_quad<kVectors>(a.grad_z + (model * a.samples + sample) * of_model + index, count);
    const Quad<A> noise = make_noise<kVectors, A>(key, sample * of_model + index);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      sum[i] += grad[i];
      product[i] = multiply_add(grad[i], noise[i], product[i]);
    }
  }
  const A* weight = a.kl_weight.of(model, a.latents);
  A of_kl[kQuad];
#pragma unroll
  for (int i = 0; i < kQuad; ++i) of_kl[i] = a.grad_kl[row_of_all];
  if (weight != nullptr) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) of_kl[i] *= i < count ? weight[k + i] : A(0);
  }
  const Quad<T> mean = load_quad<kVectors>(a.mean + place, count);
  const Quad<T> logvar = load_quad<kVectors>(a.logvar + place, count);
  Quad<T> grad_mean, grad_logvar;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const GaussianElementBackward<A> element = gaussian_element_backward(load(logvar[i]));
    store(multiply_add(of_kl[i], load(mean[i]), sum[i]), grad_mean[i]);
    store(A(0.5) * multiply_add(of_kl[i], element.expm1, element.sigma * product[i]), grad_logvar[i]);
  }
  store_quad<kVectors>(a.grad_mean + place, count, grad_mean);
  store_quad<kVectors>(a.grad_logvar + place, count, grad_logvar);
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
