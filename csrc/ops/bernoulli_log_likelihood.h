// Log-likelihood of Bernoulli variables given their logits, per sample. With r = [a > 0] - x
//
//   log p(x|a) = x a - softplus(a) = -(r a + softplus(-|a|))
//   ℓ_n        = Σ_i log p(x_ni | a_ni)
//   ∂ℓ/∂a      = x - sigmoid(a)    = ±sigmoid(-|a|) - r, with the sign of a
//
// The forms with r do not cancel, and the first is 0 or -∞ at an infinite logit. Values, and the gradient that comes
// in, are double for double inputs and float for all others; the gradient that goes out has the dtype of the inputs.
//
// Launches: 1 forward, 2 where a row is several pieces, 1 backward, and torch's for the gradient of x.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"
#include "common/pieces.h"

namespace lineavae {

// Everything contiguous, the first dimension over models.
template <class T>
struct BernoulliLogLikelihood {
  int64_t models, samples, features;
  bool shared;      // one x for all models
  const T* x;       // (models or 1, N, D)
  const T* logits;  // (models, N, D)
  Pieces pieces;
  accumulate_t<T>* sums;   // (models, N, pieces): of each piece; value itself where a row is one
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

// [a > 0] - x
template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_residual(A x, A logit) {
  return (logit > 0 ? A(1) : A(0)) - x;
}

// -log p(x|a), where `excess` is softplus(a) - max(a, 0).
template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_loss(A x, A logit, A excess) {
  const A residual = bernoulli_residual(x, logit);
  return (residual == 0 ? A(0) : residual * logit) + excess;
}

// x - sigmoid(a), where `tail` is sigmoid(-|a|).
template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_slope(A x, A logit, A tail) {
  return (logit > 0 ? tail : -tail) - bernoulli_residual(x, logit);
}

// log(1 + e) / e on [0, 1], highest power first; tests/ops/fit_softplus_mixture.py derives it.
template <class A>
struct Log1pTraits;
template <>
struct Log1pTraits<float> {
  static constexpr int kTerms = 10;
  LINEAVAE_HOST_DEVICE static float coefficient(int i) {
    constexpr float c[kTerms] = {-0.00317605702f, 0.0195425273f, -0.0563736128f, 0.105436238f,  -0.152696671f,
                                 0.196632743f,    -0.249516163f, 0.333297105f,   -0.499998926f, 0.999999995f};
    return c[i];
  }
};
template <>
struct Log1pTraits<double> {
  static constexpr int kTerms = 21;
  LINEAVAE_HOST_DEVICE static double coefficient(int i) {
    constexpr double c[kTerms] = {2.4437973948580947e-05, -0.0002827421139374107, 0.0015535244034334333,
                                  -0.0054217339910016095, 0.013598778090617254,   -0.026398779480743217,
                                  0.041925709853904154,   -0.05718978534193906,   0.07015296236526472,
                                  -0.08070954578430206,   0.09009095815198633,    -0.09979768096586568,
                                  0.11107211585299538,    -0.12499427063514382,   0.14285651975275926,
                                  -0.16666661848248537,   0.19999999749856523,    -0.24999999992009522,
                                  0.33333333333197523,    -0.4999999999999908,    1.0};
    return c[i];
  }
};

// log(1 + e) for e in [0, 1].
template <class A>
LINEAVAE_HOST_DEVICE A log1p_of_unit(A e) {
  using Traits = Log1pTraits<A>;
  A ratio = Traits::coefficient(0);
  for (int i = 1; i < Traits::kTerms; ++i) ratio = multiply_add(ratio, e, Traits::coefficient(i));
  return ratio * e;
}

template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_loss(A x, A logit) {
  return bernoulli_loss(x, logit, log1p_of_unit(decay(absolute(logit))));
}

// sigmoid(-|a|)
template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_tail(A logit) {
  const A e = decay(absolute(logit));
  return e / (1 + e);
}

template <class A>
LINEAVAE_HOST_DEVICE A bernoulli_slope(A x, A logit) {
  return bernoulli_slope(x, logit, bernoulli_tail(logit));
}

}  // namespace lineavae
