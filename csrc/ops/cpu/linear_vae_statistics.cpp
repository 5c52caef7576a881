// Rows of a matrix are split over threads; every sum runs along one row in the vector lanes of T and from row to row in
// double, in an order that the number of threads does not change.
#include "ops/linear_vae_statistics.h"

#include <cmath>

#include "common/cpu.h"

namespace lineavae {

template <class T>
LINEAVAE_INLINE void subtract_mean_body(const OffsetArguments<T>& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    a.offset[i] = a.sample_mean[a.shared ? i % a.features : i] - a.mu[i];
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, subtract_mean, OffsetArguments, (a.models * a.features), 1)

// tr S, one feature's share of it
template <class T>
LINEAVAE_INLINE double variance_of(const DistortionArguments<T>& a, int64_t model, int64_t feature) {
  const int64_t row = (a.shared ? 0 : model) * a.features + feature;
  switch (a.form) {
    case Covariance::kDense:
      return a.covariance[row * a.features + feature];
    case Covariance::kFactor:
      return dot(a.covariance + row * a.rank, a.covariance + row * a.rank, a.rank);
    case Covariance::kDiagonal:
      return static_cast<double>(a.covariance[row]) * a.covariance[row];
  }
  return 0;
}

template <class T>
LINEAVAE_INLINE void distortion_parts_body(const DistortionArguments<T>& a, int64_t begin, int64_t end) {
  const int64_t parts = num_parts(a.features), K = a.latents;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t model = index / parts, part = index % parts;
    const T* encoded = a.encoded_offset + model * K;
    double sum = 0;
    for (int64_t i = part * a.features / parts; i < (part + 1) * a.features / parts; ++i) {
      const int64_t row = model * a.features + i;
      const T offset = a.offset[row];
      const T *weight = a.weight + row * K, *covariance_encoder = a.covariance_encoder + row * K;
      T cross = 0;
#pragma omp simd reduction(+ : cross)
      for (int64_t k = 0; k < K; ++k) cross += weight[k] * (covariance_encoder[k] + offset * encoded[k]);
      sum += variance_of(a, model, i) + static_cast<double>(offset) * offset - 2.0 * cross;
    }
    for (int64_t k = part * K / parts; k < (part + 1) * K / parts; ++k) {
      const int64_t row = model * K + k;
      const T* gram = a.gram + row * K;
      sum += std::exp(static_cast<double>(a.log_d[row])) * gram[k] + dot(gram, a.aggregate + row * K, K) +
             static_cast<double>(encoded[k]) * dot(gram, encoded, K);
    }
    a.parts[index] = sum;
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, distortion_parts, DistortionArguments, (a.models * num_parts(a.features)),
                    (a.features + a.latents) * a.latents / num_parts(a.features))

template <class T>
LINEAVAE_INLINE void elbo_body(const ElboArguments<T>& a, int64_t begin, int64_t end) {
  const int64_t parts = num_parts(a.features), K = a.latents;
  for (int64_t model = begin; model < end; ++model) {
    double distortion = 0, divergence = 0;
    for (int64_t part = 0; part < parts; ++part) distortion += a.parts[model * parts + part];
    for (int64_t k = 0; k < K; ++k) {
      const double encoded = a.encoded_offset[model * K + k];
      divergence += expm1_minus_x(static_cast<double>(a.log_d[model * K + k])) + a.aggregate[(model * K + k) * K + k] +
                    encoded * encoded;
    }
    const double log_sigma2 = a.log_sigma2[model];
    a.distortion[model] = distortion;
    a.elbo[model] =
        static_cast<T>(-0.5 * (distortion * std::exp(-log_sigma2) + a.num_features * (kLog2Pi + log_sigma2) +
                               weighted(a.beta[model], divergence)));
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, elbo, ElboArguments, a.models, a.latents)

template <class T>
LINEAVAE_INLINE void latent_gradients_body(const LatentGradients<T>& a, int64_t begin, int64_t end) {
  const int64_t K = a.latents;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t model = row / K, k = row % K;
    const double precision = std::exp(-static_cast<double>(a.log_sigma2[model])), f = std::min(1.0, precision);
    const double log_d = a.log_d[row], d = std::exp(log_d);
    const T* encoded = a.encoded_offset + model * K;
    const T *gram = a.gram + row * K, *aggregate = a.aggregate + row * K;
    T *decoder_pull = a.decoder_pull + row * K, *encoder_pull = a.encoder_pull + row * K;
    const T scale = static_cast<T>(f), encoded_k = encoded[k];
#pragma omp simd
    for (int64_t l = 0; l < K; ++l) {
      decoder_pull[l] = aggregate[l] + encoded_k * encoded[l];
      encoder_pull[l] = scale * gram[l];
    }
    a.weight_scale[row] = a.grad[model] * precision * d;
    encoder_pull[k] = static_cast<T>(f * gram[k] + a.beta[model] * (f / precision));
    a.grad_log_d[row] =
        static_cast<T>(-0.5 * a.grad[model] * (weighted(a.beta[model], expm1(log_d)) + d * gram[k] * precision));
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, latent_gradients, LatentGradients, (a.models * a.latents), a.latents)

template <class T>
LINEAVAE_INLINE void weight_gradients_body(const WeightGradients<T>& a, int64_t begin, int64_t end) {
  const int64_t K = a.latents;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t model = row / a.features;
    const double precision = std::exp(-static_cast<double>(a.log_sigma2[model])), f = std::min(1.0, precision);
    const double c = a.grad[model] * precision, c_over_f = a.grad[model] * (precision / f);
    const T scale = static_cast<T>(f), offset = a.offset[row];
    const T* encoded = a.encoded_offset + model * K;
    const T *weight = a.weight + row * K, *covariance_encoder = a.covariance_encoder + row * K;
    const double* weight_scale = a.weight_scale + model * K;
    T *grad_weight = a.grad_weight + row * K, *shortfall = a.shortfall + row * K;
    T decoded = 0;
#pragma omp simd reduction(+ : decoded)
    for (int64_t k = 0; k < K; ++k) {
      decoded += weight[k] * encoded[k];
      const T pull = covariance_encoder[k] + offset * encoded[k] - grad_weight[k];
      grad_weight[k] = static_cast<T>(c * pull - weight_scale[k] * weight[k]);
      shortfall[k] = static_cast<T>(c_over_f * (scale * weight[k] - shortfall[k]));
    }
    a.grad_mu[row] = static_cast<T>(c * (offset - decoded));
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, weight_gradients, WeightGradients, (a.models * a.features), a.latents)

template <class T>
LINEAVAE_INLINE void remaining_gradients_body(const RemainingGradients<T>& a, int64_t begin, int64_t end) {
  const int64_t D = a.features;
  // index K of a model stands for mu and log_sigma2, the others for a row of the encoder
  for (int64_t index = begin; index < end; ++index) {
    const int64_t model = index / (a.latents + 1), k = index % (a.latents + 1);
    const T* offset = a.offset + model * D;
    if (k < a.latents) {
      const T pull = a.offset_pull[model * a.latents + k];
      T* grad_encoder = a.grad_encoder + (model * a.latents + k) * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) grad_encoder[i] += pull * offset[i];
    } else {
      const double precision = std::exp(-static_cast<double>(a.log_sigma2[model]));
      const T* pulled = a.pulled + model * D;
      T* grad_mu = a.grad_mu + model * D;
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) grad_mu[i] -= pulled[i];
      a.grad_log_sigma2[model] =
          static_cast<T>(0.5 * a.grad[model] * (a.distortion[model] * precision - a.num_features));
    }
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, remaining_gradients, RemainingGradients, (a.models * (a.latents + 1)),
                    a.features)

// Square blocks, so that both the rows read and the rows written stay in the cache.
template <class T>
LINEAVAE_INLINE void diagonal_product_body(const DiagonalProduct<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 16;
  const int64_t rows = a.features_first ? a.features : a.latents;
  const int64_t columns = a.features_first ? a.latents : a.features;
  const int64_t row_blocks = (rows + kBlock - 1) / kBlock;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t model = index / row_blocks, first = index % row_blocks * kBlock;
    const T* factor = a.factor + (a.shared ? 0 : model) * a.features;
    const T* in = a.in + model * rows * columns;
    T* out = a.out + model * rows * columns;
    const int64_t last = std::min(first + kBlock, rows);
    for (int64_t column = 0; column < columns; column += kBlock) {
      const int64_t last_column = std::min(column + kBlock, columns);
      for (int64_t j = column; j < last_column; ++j) {
        for (int64_t i = first; i < last; ++i) {
          const T f = factor[a.features_first ? i : j];
          out[j * rows + i] = f * f * in[i * columns + j];
        }
      }
    }
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, diagonal_product, DiagonalProduct,
                    (a.models * (((a.features_first ? a.features : a.latents) + 15) / 16)),
                    (16 * (a.features_first ? a.latents : a.features)))

}  // namespace lineavae
