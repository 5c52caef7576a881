// A block per sample where the sample's row is summed, a warp for its variances, a thread per element elsewhere. Sums
// along a row are in T, in a fixed order. Deterministic.
#include "common/cuda.cuh"
#include "ops/expected_bernoulli_log_likelihood.h"

namespace lineavae {
namespace cuda {

template <class T>
__global__ void __launch_bounds__(kThreads) variances_kernel(const Variances<T> a) {
  const int64_t row = warp_row();
  if (row >= a.samples) return;
  T largest = 0;
#pragma unroll 1
  for (int64_t k = lane(); k < a.latents; k += kWarp) {
    const T logvar = a.logvar[row * a.latents + k];
    a.variance[row * a.latents + k] = exponential(logvar);
    largest = logvar > largest ? logvar : largest;
  }
  largest = warp_reduce(largest, [](T a, T b) { return b > a ? b : a; });
  const double shift = log_squared_scale(largest);
  if (lane() == 0) a.scale[row] = static_cast<T>(exp(0.5 * shift));
  if (shift == 0) return;
#pragma unroll 1
  for (int64_t k = lane(); k < a.latents; k += kWarp) {
    const int64_t index = row * a.latents + k;
    a.variance[index] = static_cast<T>(exp(a.logvar[index] - shift));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) squared_weights_kernel(const SquaredWeights<T> a) {
  const int64_t index = thread_index();
  if (index < a.weights) a.squared_weight[index] = a.weight[index] * a.weight[index];
}

// One block per sample.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    expected_bernoulli_kernel(const ExpectedBernoulli<T> a) {
  LINEAVAE_SHARED(partial, T[kWarps]);
  const int64_t row = blockIdx.x;
  const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
  const T* bias = a.bias + row / a.samples * a.features;
  T *slope = a.slope + row * a.features, *curvature = a.curvature + row * a.features;
  const T scale = a.scale[row];
  T loss = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < a.features; i += kThreads) {
    const T m = slope[i] + bias[i];
    const T magnitude = m > 0 ? m : -m;
    const ExpectedSoftplus<T> softplus =
        scale == 1 ? expected_softplus(magnitude, curvature[i]) : expected_softplus(magnitude, curvature[i], scale);
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

LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, variances, Variances, blocks_of_rows(a.samples))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, squared_weights, SquaredWeights, blocks_of_threads(a.weights))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, expected_bernoulli, ExpectedBernoulli, blocks(a.models* a.samples))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, posterior_gradients, PosteriorGradients,
                     blocks_of_threads(a.models* a.samples* a.latents))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, bernoulli_weight_gradient, BernoulliWeightGradient,
                     blocks_of_threads(a.weights))
}  // namespace lineavae
