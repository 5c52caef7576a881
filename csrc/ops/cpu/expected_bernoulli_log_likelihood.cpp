// Rows of a matrix, or elements, are split over threads; the sum over the features of a row runs in the vector lanes of
// T, so the result does not depend on the number of threads.
#include "ops/expected_bernoulli_log_likelihood.h"

#include <cmath>

#include "common/cpu.h"

namespace lineavae {

template <class T>
LINEAVAE_INLINE void variances_body(const Variances<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* logvar = a.logvar + row * a.latents;
    T *variance = a.variance + row * a.latents, largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t k = 0; k < a.latents; ++k) {
      variance[k] = exponential(logvar[k]);
      largest = logvar[k] > largest ? logvar[k] : largest;
    }
    const double shift = log_squared_scale(largest);
    a.scale[row] = static_cast<T>(std::exp(0.5 * shift));
    if (shift == 0) continue;
    for (int64_t k = 0; k < a.latents; ++k) variance[k] = static_cast<T>(std::exp(logvar[k] - shift));
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, variances, Variances, a.samples, a.latents)

template <class T>
LINEAVAE_INLINE void squared_weights_body(const SquaredWeights<T>& a, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) a.squared_weight[i] = a.weight[i] * a.weight[i];
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, squared_weights, SquaredWeights, a.weights, 1)

template <bool kScaled, class T>
LINEAVAE_INLINE void expected_bernoulli_row(const ExpectedBernoulli<T>& a, int64_t row) {
  const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
  const T *bias = a.bias + row / a.samples * a.features, scale = a.scale[row];
  T *slope = a.slope + row * a.features, *curvature = a.curvature + row * a.features;
  T loss = 0;
#pragma omp simd reduction(+ : loss)
  for (int64_t i = 0; i < a.features; ++i) {
    const T m = slope[i] + bias[i];
    const ExpectedSoftplus<T> softplus = kScaled ? expected_softplus(absolute(m), curvature[i], scale)
                                                 : expected_softplus<Precise<T>>(absolute(m), curvature[i]);
    loss += bernoulli_loss(x[i], m, softplus.excess);
    slope[i] = bernoulli_slope(x[i], m, softplus.tail);
    curvature[i] = -softplus.curvature;
  }
  a.value[row] = -loss;
}

template <class T>
LINEAVAE_INLINE void expected_bernoulli_body(const ExpectedBernoulli<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    if (a.scale[row] == 1) {
      expected_bernoulli_row<false>(a, row);
    } else {
      expected_bernoulli_row<true>(a, row);
    }
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, expected_bernoulli, ExpectedBernoulli, (a.models * a.samples),
                    (a.features * kMixtureTerms))

template <class T>
LINEAVAE_INLINE void posterior_gradients_body(const PosteriorGradients<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T grad = a.grad[row];
    const T *mean = a.mean + row * a.latents, *variance = a.variance + row * a.latents;
    T *grad_mean = a.grad_mean + row * a.latents, *grad_logvar = a.grad_logvar + row * a.latents;
    T *scaled_mean = a.scaled_mean + row * a.latents, *scaled_variance = a.scaled_variance + row * a.latents;
#pragma omp simd
    for (int64_t k = 0; k < a.latents; ++k) {
      grad_mean[k] *= grad;
      scaled_mean[k] = grad * mean[k];
      scaled_variance[k] = grad * variance[k];
      grad_logvar[k] *= scaled_variance[k];
    }
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, posterior_gradients, PosteriorGradients, (a.models * a.samples), a.latents)

template <class T>
LINEAVAE_INLINE void bernoulli_weight_gradient_body(const BernoulliWeightGradient<T>& a, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) a.grad_weight[i] += by_weight(a.weight[i], a.by_square[i]);
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, bernoulli_weight_gradient, BernoulliWeightGradient, a.weights, 1)

}  // namespace lineavae
