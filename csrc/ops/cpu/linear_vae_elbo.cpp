// Rows of a matrix are split over threads; every sum runs along one row in the vector lanes of T and from row to row in
// an order that the number of threads does not change.
#include "ops/linear_vae_elbo.h"

#include <algorithm>
#include <cmath>

#include "common/cpu.h"

namespace lineavae {

template <class T>
LINEAVAE_INLINE void centre_body(const CentreArguments<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
    const T* mu = a.mu + row / a.samples * a.features;
    T* centred = a.centred + row * a.features;
#pragma omp simd
    for (int64_t i = 0; i < a.features; ++i) centred[i] = x[i] - mu[i];
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, centre, CentreArguments, (a.models * a.samples), a.features)

// Row by row over the columns, so that W is read in memory order.
template <class T>
LINEAVAE_INLINE void column_norms_body(const ColumnNormArguments<T>& a, int64_t begin, int64_t end) {
  for (int64_t model = begin; model < end; ++model) {
    T* norms = a.column_norms + model * a.latents;
    std::fill(norms, norms + a.latents, T(0));
    for (int64_t i = 0; i < a.features; ++i) {
      const T* row = a.weight + (model * a.features + i) * a.latents;
#pragma omp simd
      for (int64_t k = 0; k < a.latents; ++k) norms[k] += row[k] * row[k];
    }
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, column_norms, ColumnNormArguments, a.models, (a.features * a.latents))

template <class T>
LINEAVAE_INLINE void latent_constants_body(const LatentConstants<T>& a, int64_t begin, int64_t end) {
  for (int64_t model = begin; model < end; ++model) {
    double spread = 0, divergence = 0;
    for (int64_t k = 0; k < a.latents; ++k) {
      const double log_d = a.log_d[model * a.latents + k];
      spread += std::exp(log_d) * a.column_norms[model * a.latents + k];
      divergence += expm1_minus_x(log_d);
    }
    a.spread[model] = spread;
    a.divergence[model] = divergence;
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, latent_constants, LatentConstants, a.models, a.latents)

// `sum` or, where that is not finite, once more in double.
template <class T>
double sum_of_squares(T sum, const T* values, int64_t size) {
  if (is_finite(sum)) return sum;
  double wide_sum = 0;
  for (int64_t i = 0; i < size; ++i) wide_sum += static_cast<double>(values[i]) * values[i];
  return wide_sum;
}

template <class T>
LINEAVAE_INLINE void residual_body(const ResidualArguments<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t model = row / a.samples;
    const T* centred = a.centred + row * a.features;
    T* residual = a.residual + row * a.features;
    T squared_residual = 0, squared_code = 0;
#pragma omp simd reduction(+ : squared_residual)
    for (int64_t i = 0; i < a.features; ++i) {
      residual[i] = centred[i] - residual[i];
      squared_residual += residual[i] * residual[i];
    }
    const T* code = a.code + row * a.latents;
#pragma omp simd reduction(+ : squared_code)
    for (int64_t k = 0; k < a.latents; ++k) squared_code += code[k] * code[k];
    const double log_sigma2 = a.log_sigma2[model];
    const double distortion = sum_of_squares(squared_residual, residual, a.features) + a.spread[model];
    const double divergence = a.divergence[model] + sum_of_squares(squared_code, code, a.latents);
    a.distortion[row] = distortion;
    a.elbo[row] = static_cast<T>(-0.5 * (distortion * std::exp(-log_sigma2) +
                                         static_cast<double>(a.features) * (kLog2Pi + log_sigma2) +
                                         weighted(a.beta[model], divergence)));
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, residual, ResidualArguments, (a.models * a.samples), a.features + a.latents)

template <class T>
LINEAVAE_INLINE void code_gradients_body(const CodeGradients<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t model = row / a.samples;
    const double c = a.grad[row] * std::exp(-static_cast<double>(a.log_sigma2[model]));
    const T grad = a.grad[row], shrink = grad * a.beta[model];
    const T* code = a.code + row * a.latents;
    T *grad_code = a.grad_code + row * a.latents, *scaled_code = a.scaled_code + row * scaled_columns(a.latents);
#pragma omp simd
    for (int64_t k = 0; k < a.latents; ++k) {
      grad_code[k] = static_cast<T>(c * grad_code[k]) - shrink * code[k];
      scaled_code[k] = grad * code[k];
    }
    scaled_code[a.latents] = grad;
    std::fill(scaled_code + a.latents + 1, scaled_code + scaled_columns(a.latents), T(0));
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, code_gradients, CodeGradients, (a.models * a.samples), a.latents)

template <class T>
LINEAVAE_INLINE void sample_sums_body(const SampleSums<T>& a, int64_t begin, int64_t end) {
  for (int64_t model = begin; model < end; ++model) {
    double grad_sum = 0, distortion_sum = 0;
    for (int64_t n = 0; n < a.samples; ++n) {
      const double grad = a.grad[model * a.samples + n];
      grad_sum += grad;
      distortion_sum += grad * a.distortion[model * a.samples + n];
    }
    const double precision = std::exp(-static_cast<double>(a.log_sigma2[model])), beta = a.beta[model];
    for (int64_t k = 0; k < a.latents; ++k) {
      const int64_t index = model * a.latents + k;
      const double log_d = a.log_d[index], d = std::exp(log_d);
      a.weight_scale[index] = grad_sum * d * precision;
      a.encoder_pull[index] = static_cast<T>(a.residual_pull[index] * precision - weighted(beta, a.code_sum[index]));
      a.grad_log_d[index] =
          static_cast<T>(-0.5 * grad_sum * (weighted(beta, expm1(log_d)) + d * a.column_norms[index] * precision));
    }
    a.grad_log_sigma2[model] = static_cast<T>(0.5 * (distortion_sum * precision - grad_sum * a.num_features));
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, sample_sums, SampleSums, a.models, a.samples + a.latents)

template <class T>
LINEAVAE_INLINE void decoder_gradients_body(const DecoderGradients<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t model = row / a.features;
    const T* weight = a.weight + row * a.latents;
    const double* scale = a.weight_scale + model * a.latents;
    const T* residual_sums = a.residual_sums + row * scaled_columns(a.latents);
    T* grad_weight = a.grad_weight + row * a.latents;
    const double precision = std::exp(-static_cast<double>(a.log_sigma2[model]));
#pragma omp simd
    for (int64_t k = 0; k < a.latents; ++k) {
      grad_weight[k] = static_cast<T>(precision * residual_sums[k] - scale[k] * weight[k]);
    }
    a.grad_mu[row] = static_cast<T>(residual_sums[a.latents] * precision - a.pulled[row]);
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, decoder_gradients, DecoderGradients, (a.models * a.features), a.latents)

}  // namespace lineavae
