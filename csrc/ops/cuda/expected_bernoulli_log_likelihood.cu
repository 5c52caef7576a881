// A warp per piece of a sample's row where that is summed, kWidth features per lane and step; a warp per sample for its
// variances, a thread per element elsewhere. Sums along a row are in T, in a fixed order. Deterministic.
#include "common/approximate.cuh"
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

template <class T>
struct Functions : Precise<T> {};
template <>
struct Functions<float> {
  __device__ __forceinline__ static float inverse_root(float x) { return approximate_rsqrt(x); }
  __device__ __forceinline__ static float reciprocal(float x) { return approximate_reciprocal(x); }
  __device__ __forceinline__ static float exp2(float x) { return approximate_exp2(x); }
};

// With kWidth > 1 the features are a multiple of it.
template <class T, int kWidth>
__global__ void __launch_bounds__(kPieceThreads) expected_bernoulli_rows(const ExpectedBernoulli<T> a) {
  const int64_t row = piece_row();
  if (row >= a.models * a.samples) return;
  const int length = piece_length(a.pieces, a.features);
  const int64_t begin = blockIdx.y * int64_t{a.pieces.length};
  const T* x_row = a.x + (a.shared ? row % a.samples : row) * a.features + begin;
  const T* bias_row = a.bias + row / a.samples * a.features + begin;
  T *slope_row = a.slope + row * a.features + begin, *curvature_row = a.curvature + row * a.features + begin;
  T loss = 0;
  const auto use = [&](const ExpectedSoftplus<T>& softplus, T x, T m, T& slope, T& curvature) {
    loss += bernoulli_loss(x, m, softplus.excess);
    slope = bernoulli_slope(x, m, softplus.tail);
    curvature = -softplus.curvature;
  };
  if (sizeof(T) == sizeof(double) || a.scale[row] == 1) {
#pragma unroll 1
    for (int i = lane() * kWidth; i < length; i += kWarp * kWidth) {
      const auto x = load_vector<kWidth>(x_row + i), bias = load_vector<kWidth>(bias_row + i);
      auto slope = load_vector<kWidth>(slope_row + i), curvature = load_vector<kWidth>(curvature_row + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const T m = slope.at[j] + bias.at[j];
        use(expected_softplus<Functions<T>>(absolute(m), curvature.at[j]), x.at[j], m, slope.at[j], curvature.at[j]);
      }
      store_vector(slope_row + i, slope);
      store_vector(curvature_row + i, curvature);
    }
  } else {
#pragma unroll 1
    for (int i = lane(); i < length; i += kWarp) {
      const T m = slope_row[i] + bias_row[i];
      use(expected_softplus(absolute(m), curvature_row[i], a.scale[row]), x_row[i], m, slope_row[i], curvature_row[i]);
    }
  }
  loss = warp_sum(loss);
  if (lane() == 0) a.sums[row * a.pieces.count + blockIdx.y] = -loss;
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
  if (index < a.weights) a.grad_weight[index] += by_weight(a.weight[index], a.by_square[index]);
}

}  // namespace cuda

LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, variances, Variances, blocks_of_rows(a.samples))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, squared_weights, SquaredWeights, blocks_of_threads(a.weights))

template <class T>
void expected_bernoulli(Cuda device, const ExpectedBernoulli<T>& a) {
  using namespace cuda;
  constexpr int kWidth = kFullWidth<T>;
  const int64_t rows = a.models * a.samples;
  const bool vectors = a.features % kWidth == 0 && are_aligned<kWidth>(a.x, a.bias, a.slope, a.curvature);
  launch(vectors ? &expected_bernoulli_rows<T, kWidth> : &expected_bernoulli_rows<T, 1>,
         blocks_of_pieces(rows, a.pieces), kPieceThreads, device, a);
  if (a.pieces.count > 1) {
    launch(&piece_sums<T>, blocks_of_rows(rows), kThreads, device, rows, a.pieces.count, a.sums, a.value);
  }
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cuda, expected_bernoulli, ExpectedBernoulli)

LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, posterior_gradients, PosteriorGradients,
                     blocks_of_threads(a.models* a.samples* a.latents))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, bernoulli_weight_gradient, BernoulliWeightGradient,
                     blocks_of_threads(a.weights))
}  // namespace lineavae
