// Log-likelihood of Bernoulli variables given their logits, per sample. With c = 1 - x where a > 0 and c = x elsewhere
//
//   log p(x|a) = x a - softplus(a) = -(c |a| + softplus(-|a|))
//   ℓ_n        = Σ_i log p(x_ni | a_ni)
//   ∂ℓ/∂a      = x - sigmoid(a)
//
// The form with c does not cancel, and is 0 or -∞ at an infinite logit. Values, and the gradient that comes in, are
// double for double inputs and float for all others; the gradient that goes out has the dtype of the inputs.
//
// Launches: 1 forward, 1 backward, and torch's for the gradient of x.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"

namespace lineavae {

// Everything contiguous, the first dimension over models.
template <class T>
struct BernoulliLogLikelihood {
  int64_t models, samples, features;
  bool shared;             // one x for all models
  const T* x;              // (models or 1, N, D)
  const T* logits;         // (models, N, D)
  accumulate_t<T>* value;  // (models, N)
};

template <class T>
struct BernoulliLogLikelihoodBackward {
  int64_t models, samples, features;
  bool shared;                  // one x for all models
  const accumulate_t<T>* grad;  // (models, N)
  const T* x;                   // (models or 1, N, D)
  const T* logits;              // (models, N, D)
  T* grad_logits;               // (models, N, D)
};

LINEAVAE_KERNEL(bernoulli_log_likelihood, BernoulliLogLikelihood)
LINEAVAE_KERNEL(bernoulli_log_likelihood_backward, BernoulliLogLikelihoodBackward)

// -log p(x|a), where `excess` is softplus(a) - max(a, 0).
template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_loss(A x, A logit, A excess) {
  const A weight = logit > 0 ? 1 - x : x;
  const A magnitude = logit > 0 ? logit : -logit;
  return (weight == 0 ? A(0) : weight * magnitude) + excess;
}

// x - sigmoid(a), where `tail` is sigmoid(-|a|).
template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_slope(A x, A logit, A tail) {
  return logit > 0 ? tail - (1 - x) : x - tail;
}

// log(1 + e) for e in [0, 1]: 2 artanh(y) with y = e / (2 + e) <= 1/3, by its series.
template <class A>
LINEAVAE_HOST_DEVICE A log1p_of_unit(A e) {
  constexpr int kTerms = sizeof(A) == sizeof(float) ? 6 : 15;
  const A y = e / (2 + e), y2 = y * y;
  A series = A(1) / (2 * kTerms + 1);
  for (int i = kTerms - 1; i >= 0; --i) series = multiply_add(series, y2, A(1) / (2 * i + 1));
  return 2 * y * series;
}

template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_loss(A x, A logit) {
  return bernoulli_loss(x, logit, log1p_of_unit(exponential(logit > 0 ? -logit : logit)));
}

template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_slope(A x, A logit) {
  const A e = exponential(logit > 0 ? -logit : logit);
  return bernoulli_slope(x, logit, e / (1 + e));
}

}  // namespace lineavae
