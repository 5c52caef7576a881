// A block per sample where the sample's row is summed, a thread per element elsewhere. Sums along a row are in T, in a
// fixed order. Deterministic.
#pragma once

#include "common/cuda.cuh"
#include "ops/expected_bernoulli_log_likelihood.h"

namespace lineavae {
namespace cuda {

// The weights follow the latents in one range of indices.
template <class T>
__global__ void __launch_bounds__(kThreads) second_moments_kernel(const SecondMoments<T> a) {
  const int64_t index = thread_index(), weight = index - a.latents;
  if (index < a.latents) {
    a.variance[index] = exponential(a.logvar[index]);
  } else if (weight < a.weights) {
    a.squared_weight[weight] = a.weight[weight] * a.weight[weight];
  }
}

// One block per sample.
template <class T>
__global__ void __launch_bounds__(kThreads) expected_bernoulli_kernel(const ExpectedBernoulli<T> a) {
  LINEAVAE_SHARED(partial, T[kWarps]);
  const int64_t row = blockIdx.x;
  const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
  const T* bias = a.bias + row / a.samples * a.features;
  T *slope = a.slope + row * a.features, *curvature = a.curvature + row * a.features;
  T loss = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < a.features; i += kThreads) {
    const T m = slope[i] + bias[i];
    const ExpectedSoftplus<T> softplus = expected_softplus(m > 0 ? m : -m, curvature[i]);
    loss += bernoulli_loss(x[i], m, softplus.excess);
    slope[i] = bernoulli_slope(x[i], m, softplus.tail);
    curvature[i] = -softplus.curvature;
  }
  loss = block_sum(loss, partial);
  if (threadIdx.x == 0) a.value[row] = -loss;
}

template <class T>
__global__ void __launch_bounds__(kThreads) posterior_gradients_kernel(const PosteriorGradients<T> a) {
  const int64_t index = thread_index();
  if (index >= a.models * a.samples * a.latents) return;
  const T grad = a.grad[index / a.latents];
  const T scaled_variance = grad * a.variance[index];
  a.grad_mean[index] *= grad;
  a.scaled_mean[index] = grad * a.mean[index];
  a.scaled_variance[index] = scaled_variance;
  a.grad_logvar[index] *= scaled_variance;
}

template <class T>
__global__ void __launch_bounds__(kThreads) bernoulli_weight_gradient_kernel(const BernoulliWeightGradient<T> a) {
  const int64_t index = thread_index();
  if (index < a.weights) a.grad_weight[index] += 2 * a.weight[index] * a.by_square[index];
}

}  // namespace cuda

template <class T>
void second_moments(Cuda device, const SecondMoments<T>& a) {
  using namespace cuda;
  launch(&second_moments_kernel<T>, blocks_of_threads(a.latents + a.weights), kThreads, device, a);
}

template <class T>
void expected_bernoulli(Cuda device, const ExpectedBernoulli<T>& a) {
  using namespace cuda;
  launch(&expected_bernoulli_kernel<T>, blocks(a.models * a.samples), kThreads, device, a);
}

template <class T>
void posterior_gradients(Cuda device, const PosteriorGradients<T>& a) {
  using namespace cuda;
  launch(&posterior_gradients_kernel<T>, blocks_of_threads(a.models * a.samples * a.latents), kThreads, device, a);
}

template <class T>
void bernoulli_weight_gradient(Cuda device, const BernoulliWeightGradient<T>& a) {
  using namespace cuda;
  launch(&bernoulli_weight_gradient_kernel<T>, blocks_of_threads(a.weights), kThreads, device, a);
}

}  // namespace lineavae
