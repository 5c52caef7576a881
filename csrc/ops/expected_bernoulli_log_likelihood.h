// Expected Bernoulli log-likelihood of a linear decoder under a diagonal Gaussian posterior, per sample: what is fused
// around the matrix products.
//
// For each model the logits of a sample are W z + b with z ~ N(μ_n, diag v_n), each of them a normal variable:
//
//   m_n = W μ_n + b,   s²_n = (W ∘ W) v_n
//   ℓ_n = Σ_i E log p(x_ni | a_ni) = Σ_i (x_ni m_ni - E softplus(a_ni)),   a_ni ~ N(m_ni, s²_ni)
//
// The logistic distribution is a scale mixture of normal ones. Six of them, N(0, τ_i²) with weights p_i, give, with
// T_i = √(τ_i² + s²) and u_i = |m| / T_i,
//
//   E softplus(a) - max(m, 0)   = Σ_i p_i T_i φ(u_i) - |m| Σ_i p_i Φ(-u_i)   up to 5.2e-8, whatever m and s²
//   E sigmoid(a)                = Σ_i p_i Φ(-u_i) where m <= 0, and one minus that elsewhere
//   ∂E softplus(a) / ∂s²        = ½ Σ_i p_i φ(u_i) / T_i
//
// Gradients, g_n the ones that come in, with the rows r_n of ∂ℓ/∂m and c_n of ∂ℓ/∂s²:
//
//   dμ_n = g_n Wᵀr_n             dW = Σ_n r_n (g_n μ_n)ᵀ + 2 W ∘ Σ_n c_n (g_n v_n)ᵀ
//   db   = Σ_n g_n r_n           dlog v_n = g_n v_n ∘ (W ∘ W)ᵀc_n
//   dx_n = g_n m_n
//
// The variances of a sample in float may be too large for it, though their square roots are not: then they stand
// divided by the square of a power of two t, its scale, so do s²_n, and c_n is multiplied by it; such a sample is
// summed in double.
//
// All arrays are contiguous, the first dimension is over models, and every reduction has a fixed order.
//
// Launches: forward 3, 4 where a row is several pieces, and 2 products, backward 2 and 4 products and 1 with a vector;
// torch's for the gradient of x.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/device.h"
#include "common/normal_tail.h"
#include "ops/bernoulli_log_likelihood.h"

namespace lineavae {

template <class T>
struct Variances {
  int64_t samples, latents;  // of all models
  const T* logvar;           // (samples, K)
  T* variance;               // (samples, K): v / t²
  T* scale;                  // (samples): t
};

template <class T>
struct SquaredWeights {
  int64_t weights;    // number of elements
  const T* weight;    // (weights): W
  T* squared_weight;  // (weights): W ∘ W
};

template <class T>
struct ExpectedBernoulli {
  int64_t models, samples, features;
  bool shared;     // one x for all models
  const T* x;      // (models or 1, N, D)
  const T* bias;   // (models, D)
  const T* scale;  // (models, N): t
  Pieces pieces;
  T* sums;       // (models, N, pieces): ℓ of each piece; value itself where a row is one
  T* value;      // (models, N): ℓ
  T* slope;      // (models, N, D): W μ in, ∂ℓ/∂m out
  T* curvature;  // (models, N, D): s² / t² in, t² ∂ℓ/∂s² out
};

template <class T>
struct PosteriorGradients {
  int64_t models, samples, latents;
  const T* grad;       // (models, N)
  const T* mean;       // (models, N, K): μ
  const T* variance;   // (models, N, K): v / t²
  T* grad_mean;        // (models, N, K): Wᵀr in, dμ out
  T* grad_logvar;      // (models, N, K): (W ∘ W)ᵀc in, dlog v out
  T* scaled_mean;      // (models, N, K): g μ
  T* scaled_variance;  // (models, N, K): g v
};

template <class T>
struct BernoulliWeightGradient {
  int64_t weights;     // number of elements
  const T* weight;     // (weights): W
  const T* by_square;  // (weights): Σ c (g v)ᵀ
  T* grad_weight;      // (weights): Σ r (g μ)ᵀ in, dW out
};

LINEAVAE_KERNEL(variances, Variances)
LINEAVAE_KERNEL(squared_weights, SquaredWeights)
LINEAVAE_KERNEL(expected_bernoulli, ExpectedBernoulli)
LINEAVAE_KERNEL(posterior_gradients, PosteriorGradients)
LINEAVAE_KERNEL(bernoulli_weight_gradient, BernoulliWeightGradient)

// 2 W Σ c (g v)ᵀ: nothing where W is 0, however large the variance that nothing depends on.
template <class T>
LINEAVAE_HOST_DEVICE T by_weight(T weight, T by_square) {
  return weight == 0 ? T(0) : 2 * weight * by_square;
}

// The weights p of the mixture, their logarithms to base 2, and the variances τ²; tests/ops/fit_softplus_mixture.py
// derives them.
constexpr int kMixtureTerms = 6;
LINEAVAE_HOST_DEVICE double mixture_weight(int i) {
  constexpr double p[kMixtureTerms] = {0.027836408056434753, 0.217757324042343,   0.3947711209363421,
                                       0.27834600927989245,  0.07654291449928365, 0.004746223185704037};
  return p[i];
}
LINEAVAE_HOST_DEVICE double mixture_log2_weight(int i) {
  constexpr double log2_p[kMixtureTerms] = {-5.166883128498138,  -2.1992068516918275, -1.3409116400621979,
                                            -1.8450486958344376, -3.7075873546997107, -7.71900434145477};
  return log2_p[i];
}
LINEAVAE_HOST_DEVICE double mixture_variance(int i) {
  constexpr double tau[kMixtureTerms] = {0.8546025722195498, 1.1666483790533457, 1.5808688999526925,
                                         2.1414132393207583, 2.887057992452868,  3.8995440031456132};
  return tau[i] * tau[i];
}

// The functions that the sum over the mixture is made of. On a GPU, float has faster ones.
template <class T>
struct Precise {
  LINEAVAE_HOST_DEVICE static T inverse_root(T x) { return T(1) / square_root(x); }
  LINEAVAE_HOST_DEVICE static T reciprocal(T x) { return T(1) / x; }
  // 2ˣ for x <= 0; where it is negligible, not 0 but so large that no product with it is subnormal.
  LINEAVAE_HOST_DEVICE static T exp2(T x) {
    constexpr T kLeast = sizeof(T) == sizeof(float) ? -100 : -1000;
    return exp2_in_range(x < kLeast ? kLeast : x);
  }
};

// Σ_i of p_i e^(-u_i²/2) times T_i, times Φ(-u_i) e^(u_i²/2), and over T_i.
template <class T>
struct MixtureSums {
  T times_scale, times_ratio, over_scale;
};

// `magnitude` is √(½ log2 e) |m|. Written as a recursion because no loop around a term is vectorised.
constexpr double kRootOfHalfLog2E = 0.8493218002880191;
template <class Functions, int kTerms = kMixtureTerms, class T>
LINEAVAE_HOST_DEVICE MixtureSums<T> mixture_sums(T magnitude, T variance) {
  if constexpr (kTerms == 0) {
    return {0, 0, 0};
  } else {
    constexpr T kRate = static_cast<T>(kNormalTailRate / kRootOfHalfLog2E);
    const T squared = variance + static_cast<T>(mixture_variance(kTerms - 1));
    const T inverse = Functions::inverse_root(squared), x = magnitude * inverse;
    const T density = Functions::exp2(multiply_add(-x, x, static_cast<T>(mixture_log2_weight(kTerms - 1))));
    const T ratio = normal_tail_ratio(Functions::reciprocal(multiply_add(kRate, x, T(1))));
    const T over_scale = density * inverse;
    const MixtureSums<T> others = mixture_sums<Functions, kTerms - 1>(magnitude, variance);
    return {multiply_add(over_scale, squared, others.times_scale), multiply_add(density, ratio, others.times_ratio),
            others.over_scale + over_scale};
  }
}

template <class T>
struct ExpectedSoftplus {
  T excess;     // E softplus(a) - max(m, 0)
  T tail;       // E sigmoid(a) where m <= 0, else 1 - E sigmoid(a)
  T curvature;  // ∂E softplus(a) / ∂s²
};

template <class T>
constexpr T kLargest = std::numeric_limits<T>::max();

template <class Functions, class T>
LINEAVAE_HOST_DEVICE ExpectedSoftplus<T> expected_softplus(T magnitude, T variance) {
  constexpr T kFar = sizeof(T) == sizeof(float) ? T(0x1p70) : T(0x1p520);  // beyond the root of every variance
  const T m = magnitude > kFar ? kFar : magnitude;
  const MixtureSums<T> sums = mixture_sums<Functions>(static_cast<T>(kRootOfHalfLog2E) * m, variance);
  const T excess = multiply_add(static_cast<T>(kInverseSqrt2Pi), sums.times_scale, -m * sums.times_ratio);
  return {variance > kLargest<T> ? variance : excess, sums.times_ratio,
          static_cast<T>(0.5 * kInverseSqrt2Pi) * sums.over_scale};
}

// Of a sample whose scale t is not 1, in double: from s² / t², and the derivative by that; where it is too large, the
// largest number, since where s² is so small that it matters its product with the weights is 0.
template <class T>
LINEAVAE_HOST_DEVICE ExpectedSoftplus<T> expected_softplus(T magnitude, T scaled_variance, T scale) {
  const double squared_scale = static_cast<double>(scale) * scale;
  const auto result = expected_softplus<Precise<double>>(double{magnitude}, scaled_variance * squared_scale);
  const T curvature = static_cast<T>(result.curvature * squared_scale);
  return {static_cast<T>(result.excess), static_cast<T>(result.tail),
          curvature > kLargest<T> ? kLargest<T> : curvature};
}

// log t² of a sample, from the largest of its log variances: 0 where the variances and their sums fit.
template <class T>
LINEAVAE_HOST_DEVICE double log_squared_scale(T largest) {
  constexpr double kLimit = 69.0, kLn2 = 0.69314718055994530942;  // 2^100 for the largest, as float sums a few of them
  if (sizeof(T) == sizeof(double) || !(largest > T(kLimit))) return 0;
  const double clamped = largest > T(700) ? 700.0 : static_cast<double>(largest);
  return 2 * kLn2 * std::ceil((clamped - kLimit) / (2 * kLn2));
}

}  // namespace lineavae
