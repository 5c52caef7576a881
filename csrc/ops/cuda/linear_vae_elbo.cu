// A block per sample where the sample's row is summed, a warp per row elsewhere, lanes along the row. Sums along a row
// are in T, over samples in double, in a fixed order. Deterministic.
#include "common/cuda.cuh"
#include "ops/linear_vae_elbo.h"

namespace lineavae {
namespace cuda {

template <class T>
__global__ void __launch_bounds__(kThreads) centre_kernel(const CentreArguments<T> a) {
  const int64_t row = warp_row();
  if (row >= a.models * a.samples) return;
  const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
  const T* mu = a.mu + row / a.samples * a.features;
  for (int64_t i = lane(); i < a.features; i += kWarp) a.centred[row * a.features + i] = x[i] - mu[i];
}

// A block per 32 columns: each warp takes every eighth row, then the warps' sums are added.
template <class T>
__global__ void __launch_bounds__(kThreads) column_norms_kernel(const ColumnNormArguments<T> a) {
  LINEAVAE_SHARED(partial, T[kWarps][kWarp]);
  const int64_t blocks_across = (a.latents + kWarp - 1) / kWarp;
  const int64_t model = blockIdx.x / blocks_across, k = blockIdx.x % blocks_across * kWarp + lane();
  const int warp = threadIdx.x / kWarp;
  T sum = 0;
  if (k < a.latents) {
    for (int64_t i = warp; i < a.features; i += kWarps) {
      const T weight = a.weight[(model * a.features + i) * a.latents + k];
      sum += weight * weight;
    }
  }
  partial[warp][lane()] = sum;
  __syncthreads();
  if (warp == 0 && k < a.latents) {
    sum = 0;
    for (int other = 0; other < kWarps; ++other) sum += partial[other][lane()];
    a.column_norms[model * a.latents + k] = sum;
  }
}

// One block per model.
template <class T>
__global__ void __launch_bounds__(kThreads) latent_constants_kernel(const LatentConstants<T> a) {
  LINEAVAE_SHARED(partial, double[kWarps]);
  const int64_t model = blockIdx.x;
  double spread = 0, divergence = 0;
#pragma unroll 1
  for (int64_t k = threadIdx.x; k < a.latents; k += kThreads) {
    const double log_d = a.log_d[model * a.latents + k];
    spread += exp(log_d) * a.column_norms[model * a.latents + k];
    divergence += expm1_minus_x(log_d);
  }
  spread = block_sum(spread, partial);
  divergence = block_sum(divergence, partial);
  if (threadIdx.x == 0) {
    a.spread[model] = spread;
    a.divergence[model] = divergence;
  }
}

// A block's `sum` or, where that is not finite, once more in double, by the threads that have taken part in it.
template <class T>
__device__ __forceinline__ double sum_of_squares(T sum, const T* values, int64_t size, double (&partial)[kWarps]) {
  if (is_finite(sum)) return sum;
  double wide_sum = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < size; i += kThreads) wide_sum += static_cast<double>(values[i]) * values[i];
  return block_sum(wide_sum, partial);
}

// One block per sample.
template <class T>
__global__ void __launch_bounds__(kThreads, resident(8)) residual_kernel(const ResidualArguments<T> a) {
  LINEAVAE_SHARED(partial, T[kWarps]);
  LINEAVAE_SHARED(wide_partial, double[kWarps]);
  const int64_t row = blockIdx.x, model = row / a.samples;
  T squared_residual = 0, squared_code = 0;
  for (int64_t i = threadIdx.x; i < a.features; i += kThreads) {
    const int64_t index = row * a.features + i;
    const T residual = a.centred[index] - a.residual[index];
    a.residual[index] = residual;
    squared_residual += residual * residual;
  }
  for (int64_t k = threadIdx.x; k < a.latents; k += kThreads) {
    const T code = a.code[row * a.latents + k];
    squared_code += code * code;
  }
  const double residual_sum =
      sum_of_squares(block_sum(squared_residual, partial), a.residual + row * a.features, a.features, wide_partial);
  const double code_sum =
      sum_of_squares(block_sum(squared_code, partial), a.code + row * a.latents, a.latents, wide_partial);
  if (threadIdx.x == 0) {
    const double log_sigma2 = a.log_sigma2[model];
    const double distortion = residual_sum + a.spread[model], divergence = a.divergence[model] + code_sum;
    a.distortion[row] = distortion;
    a.elbo[row] = static_cast<T>(-0.5 * (distortion * exp(-log_sigma2) +
                                         static_cast<double>(a.features) * (kLog2Pi + log_sigma2) +
                                         weighted(a.beta[model], divergence)));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) code_gradients_kernel(const CodeGradients<T> a) {
  const int64_t row = warp_row();
  if (row >= a.models * a.samples) return;
  const int64_t model = row / a.samples;
  const double c = a.grad[row] * exp(-static_cast<double>(a.log_sigma2[model]));
  const T grad = a.grad[row], shrink = grad * a.beta[model];
  T* scaled_code = a.scaled_code + row * scaled_columns(a.latents);
  for (int64_t k = lane(); k < scaled_columns(a.latents); k += kWarp) {
    T scaled = k == a.latents ? grad : T(0);
    if (k < a.latents) {
      const int64_t index = row * a.latents + k;
      const T code = a.code[index];
      a.grad_code[index] = static_cast<T>(c * a.grad_code[index]) - shrink * code;
      scaled = grad * code;
    }
    scaled_code[k] = scaled;
  }
}

// One block per model.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_sums_kernel(const SampleSums<T> a) {
  LINEAVAE_SHARED(partial, double[kWarps]);
  const int64_t model = blockIdx.x;
  double grad_sum = 0, distortion_sum = 0;
  for (int64_t n = threadIdx.x; n < a.samples; n += kThreads) {
    const double grad = a.grad[model * a.samples + n];
    grad_sum += grad;
    distortion_sum += grad * a.distortion[model * a.samples + n];
  }
  grad_sum = block_sum(grad_sum, partial);
  distortion_sum = block_sum(distortion_sum, partial);
  const double precision = exp(-static_cast<double>(a.log_sigma2[model])), beta = a.beta[model];
  for (int64_t k = threadIdx.x; k < a.latents; k += kThreads) {
    const int64_t index = model * a.latents + k;
    const double log_d = a.log_d[index], d = exp(log_d);
    a.weight_scale[index] = grad_sum * d * precision;
    a.encoder_pull[index] = static_cast<T>(a.residual_pull[index] * precision - weighted(beta, a.code_sum[index]));
    a.grad_log_d[index] =
        static_cast<T>(-0.5 * grad_sum * (weighted(beta, expm1(log_d)) + d * a.column_norms[index] * precision));
  }
  if (threadIdx.x == 0) {
    a.grad_log_sigma2[model] = static_cast<T>(0.5 * (distortion_sum * precision - grad_sum * a.num_features));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) decoder_gradients_kernel(const DecoderGradients<T> a) {
  const int64_t row = warp_row();
  if (row >= a.models * a.features) return;
  const int64_t model = row / a.features;
  const double precision = exp(-static_cast<double>(a.log_sigma2[model]));
  const T* residual_sums = a.residual_sums + row * scaled_columns(a.latents);
  for (int64_t k = lane(); k < a.latents; k += kWarp) {
    const int64_t index = row * a.latents + k;
    const double pull = a.weight_scale[model * a.latents + k] * a.weight[index];
    a.grad_weight[index] = static_cast<T>(precision * residual_sums[k] - pull);
  }
  if (lane() == 0) {
    a.grad_mu[row] = static_cast<T>(residual_sums[a.latents] * precision - a.pulled[row]);
  }
}

}  // namespace cuda

LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, centre, CentreArguments, blocks_of_rows(a.models* a.samples))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, column_norms, ColumnNormArguments,
                     blocks(a.models*((a.latents + kWarp - 1) / kWarp)))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, latent_constants, LatentConstants, blocks(a.models))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, residual, ResidualArguments, blocks(a.models* a.samples))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, code_gradients, CodeGradients, blocks_of_rows(a.models* a.samples))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, sample_sums, SampleSums, blocks(a.models))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, decoder_gradients, DecoderGradients, blocks_of_rows(a.models* a.features))
}  // namespace lineavae
