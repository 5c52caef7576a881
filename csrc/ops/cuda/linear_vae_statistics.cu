// A warp per row of a matrix, lanes along the row: every access is coalesced. The distortion is summed along rows in T,
// over rows in double: each block writes one part, and one block per model adds the parts in order. Deterministic.
#include "common/cuda.cuh"
#include "ops/linear_vae_statistics.h"

namespace lineavae {
namespace cuda {

template <class T>
__global__ void __launch_bounds__(kThreads) subtract_mean_kernel(const OffsetArguments<T> a) {
  const int64_t i = thread_index();
  if (i < a.models * a.features) a.offset[i] = a.sample_mean[a.shared ? i % a.features : i] - a.mu[i];
}

// This lane's share of one diagonal element of the covariance.
template <class T>
__device__ double variance_share(const DistortionArguments<T>& a, int64_t model, int64_t feature) {
  const int64_t row = (a.shared ? 0 : model) * a.features + feature;
  if (a.form == Covariance::kFactor) {
    T sum = 0;
    for (int64_t j = lane(); j < a.rank; j += kWarp) {
      const T f = a.covariance[row * a.rank + j];
      sum += f * f;
    }
    return sum;
  }
  if (lane() != 0) return 0;
  const double value = a.covariance[a.form == Covariance::kDense ? row * a.features + feature : row];
  return a.form == Covariance::kDense ? value : value * value;
}

// One block per part and model.
template <class T>
__global__ void __launch_bounds__(kThreads) distortion_parts_kernel(const DistortionArguments<T> a) {
  LINEAVAE_SHARED(partial, double[kWarps]);
  const int64_t parts = num_parts(a.features), K = a.latents;
  const int64_t model = blockIdx.x / parts, part = blockIdx.x % parts;
  const int warp = threadIdx.x / kWarp;
  const T* encoded = a.encoded_offset + model * K;
  double sum = 0;
  for (int64_t i = part * a.features / parts + warp; i < (part + 1) * a.features / parts; i += kWarps) {
    const int64_t row = model * a.features + i;
    const T offset = a.offset[row];
    T cross = 0;
    for (int64_t k = lane(); k < K; k += kWarp) {
      cross += a.weight[row * K + k] * (a.covariance_encoder[row * K + k] + offset * encoded[k]);
    }
    sum += variance_share(a, model, i) - 2.0 * cross;
    if (lane() == 0) sum += static_cast<double>(offset) * offset;
  }
  for (int64_t k = part * K / parts + warp; k < (part + 1) * K / parts; k += kWarps) {
    const int64_t row = model * K + k;
    T cross = 0;
    for (int64_t l = lane(); l < K; l += kWarp) {
      cross += a.gram[row * K + l] * (a.aggregate[row * K + l] + encoded[k] * encoded[l]);
    }
    sum += cross;
    if (lane() == 0) sum += exp(static_cast<double>(a.log_d[row])) * a.gram[row * K + k];
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) a.parts[blockIdx.x] = sum;
}

// One block per model.
template <class T>
__global__ void __launch_bounds__(kThreads) elbo_kernel(const ElboArguments<T> a) {
  LINEAVAE_SHARED(partial, double[kWarps]);
  const int64_t model = blockIdx.x, parts = num_parts(a.features), K = a.latents;
  double distortion = 0, divergence = 0;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) distortion += a.parts[model * parts + part];
#pragma unroll 1
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    const double encoded = a.encoded_offset[model * K + k];
    divergence += expm1_minus_x(static_cast<double>(a.log_d[model * K + k])) + a.aggregate[(model * K + k) * K + k] +
                  encoded * encoded;
  }
  distortion = block_sum(distortion, partial);
  divergence = block_sum(divergence, partial);
  if (threadIdx.x == 0) {
    const double log_sigma2 = a.log_sigma2[model];
    a.distortion[model] = distortion;
    a.elbo[model] = static_cast<T>(-0.5 * (distortion * exp(-log_sigma2) + a.num_features * (kLog2Pi + log_sigma2) +
                                           weighted(a.beta[model], divergence)));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) latent_gradients_kernel(const LatentGradients<T> a) {
  const int64_t row = warp_row(), K = a.latents;
  if (row >= a.models * K) return;
  const int64_t model = row / K, k = row % K;
  const double precision = exp(-static_cast<double>(a.log_sigma2[model])), f = precision < 1 ? precision : 1.0;
  const double beta = a.beta[model], log_d = a.log_d[row], d = exp(log_d);
  const T* encoded = a.encoded_offset + model * K;
  for (int64_t l = lane(); l < K; l += kWarp) {
    const T gram = a.gram[row * K + l];
    const T aggregate = a.aggregate[row * K + l] + encoded[k] * encoded[l];
    a.decoder_pull[row * K + l] = aggregate;
    if (l == k) {
      a.weight_scale[row] = a.grad[model] * precision * d;
      a.encoder_pull[row * K + l] = static_cast<T>(f * gram + beta * (f / precision));
      a.grad_log_d[row] = static_cast<T>(-0.5 * a.grad[model] * (weighted(beta, expm1(log_d)) + d * gram * precision));
    } else {
      a.encoder_pull[row * K + l] = static_cast<T>(f) * gram;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) weight_gradients_kernel(const WeightGradients<T> a) {
  const int64_t row = warp_row(), K = a.latents;
  if (row >= a.models * a.features) return;
  const int64_t model = row / a.features;
  const double precision = exp(-static_cast<double>(a.log_sigma2[model])), f = precision < 1 ? precision : 1.0;
  const double c = a.grad[model] * precision, c_over_f = a.grad[model] * (precision / f);
  const T scale = static_cast<T>(f), offset = a.offset[row];
  T decoded = 0;
  for (int64_t k = lane(); k < K; k += kWarp) {
    const int64_t index = row * K + k;
    const T weight = a.weight[index], encoded = a.encoded_offset[model * K + k];
    decoded += weight * encoded;
    const T pull = a.covariance_encoder[index] + offset * encoded - a.grad_weight[index];
    a.grad_weight[index] = static_cast<T>(c * pull - a.weight_scale[model * K + k] * weight);
    a.shortfall[index] = static_cast<T>(c_over_f * (scale * weight - a.shortfall[index]));
  }
  decoded = warp_sum(decoded);
  if (lane() == 0) a.grad_mu[row] = static_cast<T>(c * (offset - decoded));
}

// Row K of a model stands for mu and log_sigma2, the others for a row of the encoder.
template <class T>
__global__ void __launch_bounds__(kThreads) remaining_gradients_kernel(const RemainingGradients<T> a) {
  const int64_t row = warp_row(), D = a.features;
  if (row >= a.models * (a.latents + 1)) return;
  const int64_t model = row / (a.latents + 1), k = row % (a.latents + 1);
  if (k < a.latents) {
    const T pull = a.offset_pull[model * a.latents + k];
    T* grad_encoder = a.grad_encoder + (model * a.latents + k) * D;
    for (int64_t i = lane(); i < D; i += kWarp) grad_encoder[i] += pull * a.offset[model * D + i];
  } else {
    for (int64_t i = lane(); i < D; i += kWarp) a.grad_mu[model * D + i] -= a.pulled[model * D + i];
    if (lane() == 0) {
      const double precision = exp(-static_cast<double>(a.log_sigma2[model]));
      a.grad_log_sigma2[model] =
          static_cast<T>(0.5 * a.grad[model] * (a.distortion[model] * precision - a.num_features));
    }
  }
}

// A 32 x 32 tile per block, transposed in shared memory so that reads and writes are both along rows.
constexpr int kTile = 32;

template <class T>
__global__ void __launch_bounds__(kThreads) diagonal_product_kernel(const DiagonalProduct<T> a) {
  LINEAVAE_SHARED(tile, T[kTile][kTile + 1]);
  const int64_t rows = a.features_first ? a.features : a.latents;
  const int64_t columns = a.features_first ? a.latents : a.features;
  const int64_t tiles_across = (columns + kTile - 1) / kTile, tiles_down = (rows + kTile - 1) / kTile;
  const int64_t model = blockIdx.x / (tiles_across * tiles_down), tile_index = blockIdx.x % (tiles_across * tiles_down);
  const int64_t first_row = tile_index / tiles_across * kTile, first_column = tile_index % tiles_across * kTile;
  const T* factor = a.factor + (a.shared ? 0 : model) * a.features;
  for (int i = threadIdx.x / kTile; i < kTile; i += kThreads / kTile) {
    const int64_t row = first_row + i, column = first_column + lane();
    if (row < rows && column < columns) {
      const T f = factor[a.features_first ? row : column];
      tile[i][lane()] = f * f * a.in[(model * rows + row) * columns + column];
    }
  }
  __syncthreads();
  for (int j = threadIdx.x / kTile; j < kTile; j += kThreads / kTile) {
    const int64_t row = first_row + lane(), column = first_column + j;
    if (row < rows && column < columns) a.out[(model * columns + column) * rows + row] = tile[lane()][j];
  }
}

}  // namespace cuda

LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, subtract_mean, OffsetArguments, blocks_of_threads(a.models* a.features))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, distortion_parts, DistortionArguments, blocks(a.models* num_parts(a.features)))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, elbo, ElboArguments, blocks(a.models))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, latent_gradients, LatentGradients, blocks_of_rows(a.models* a.latents))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, weight_gradients, WeightGradients, blocks_of_rows(a.models* a.features))
LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, remaining_gradients, RemainingGradients,
                     blocks_of_rows(a.models*(a.latents + 1)))
template <class T>
void diagonal_product(Cuda device, const DiagonalProduct<T>& a) {
  using namespace cuda;
  const int64_t tiles = ((a.features + kTile - 1) / kTile) * ((a.latents + kTile - 1) / kTile);
  launch(&diagonal_product_kernel<T>, blocks(a.models * tiles), kThreads, device, a);
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cuda, diagonal_product, DiagonalProduct)

}  // namespace lineavae
