// Mean analytic ELBO of the linear VAE from the statistics of a dataset: what is fused around the matrix products.
//
// For each model, with δ = x̄ - μ, a = V δ, C = S Vᵀ, M = WᵀW and P = V C, where S is the covariance about x̄:
//
//   T      = Σ_k d_k M_kk + Σ_kl M_kl (P_kl + a_k a_l) - 2 Σ_ik W_ik (C_ik + δ_i a_k) + tr S + ‖δ‖²
//   ELBO   = -T / (2σ²) - (D/2) log(2πσ²) - (β/2) (Σ_k φ(log d_k) + tr P + ‖a‖²)
//
// Gradients, g the one that comes in and c = g / σ²:
//
//   Q      = P + a aᵀ                          R = f (M + βσ² I),  f = min(1, 1/σ²)
//   dW     = c (C + δ aᵀ - W diag d - W Q)     G = (c/f) (f W - Vᵀ R),  u = Gᵀδ
//   dV     = Gᵀ S + u δᵀ                       dμ = c (δ - W a) - Vᵀ u
//   dlog d = ½ g (β - β d - d diag(M) / σ²)    dlog σ² = g (T / (2σ²) - D/2)
//
// T, c and c d are kept in double: they may overflow a float where their product with what they multiply does not; f
// keeps σ² from doing so. A weight β of 0 switches the KL off, infinite or not. Subtracting before multiplying by S, as
// G does, keeps dV accurate near the optimum, where W - VᵀR vanishes. All arrays are contiguous, the first dimension is
// over models, and every reduction has a fixed order.
//
// Launches: of moments, forward 3 and 3 products and 1 with a vector, backward 3 and 3 products and 2 with a vector; of
// a dense factor a product more each; of a diagonal one, 4 and 2 products and the same with vectors; 1 more where beta
// is a number.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/wide.h"

namespace lineavae {

// What stands for the covariance S: itself (D, D), a factor F (D, r) with S = F Fᵀ, or a diagonal factor (D).
enum class Covariance { kDense, kFactor, kDiagonal };

// T is summed in parts, one per block of features (and of latents): few enough to be summed in order afterwards.
constexpr int64_t kMaxParts = 64;
LINEAVAE_HOST_DEVICE int64_t num_parts(int64_t features) {
  const int64_t parts = (features + 7) / 8;
  return parts < 1 ? 1 : parts > kMaxParts ? kMaxParts : parts;
}

template <class T>
struct OffsetArguments {
  int64_t models, features;
  bool shared;           // one sample_mean for all models
  const T* sample_mean;  // (models or 1, D)
  const T* mu;           // (models, D)
  T* offset;             // (models, D): δ
};

template <class T>
struct DistortionArguments {
  int64_t models, features, latents;
  Covariance form;
  int64_t rank;                 // columns of a factor
  bool shared;                  // one covariance for all models
  const T* covariance;          // (models or 1, D, D), (models or 1, D, r) or (models or 1, D)
  const T* weight;              // (models, D, K): W
  const T* log_d;               // (models, K)
  const T* offset;              // (models, D): δ
  const T* encoded_offset;      // (models, K): a
  const T* covariance_encoder;  // (models, D, K): C
  const T* gram;                // (models, K, K): M
  const T* aggregate;           // (models, K, K): P
  double* parts;                // (models, num_parts(D))
};

template <class T>
struct ElboArguments {
  int64_t models, features, latents;
  double num_features;
  const double* parts;      // (models, num_parts(D))
  const T* log_d;           // (models, K)
  const T* log_sigma2;      // (models)
  const T* beta;            // (models)
  const T* encoded_offset;  // (models, K): a
  const T* aggregate;       // (models, K, K): P
  T* elbo;                  // (models)
  double* distortion;       // (models): T
};

template <class T>
struct LatentGradients {
  int64_t models, latents;
  const T* grad;            // (models)
  const T* log_d;           // (models, K)
  const T* log_sigma2;      // (models)
  const T* beta;            // (models)
  const T* encoded_offset;  // (models, K): a
  const T* gram;            // (models, K, K): M
  const T* aggregate;       // (models, K, K): P
  T* decoder_pull;          // (models, K, K): Q
  T* encoder_pull;          // (models, K, K): R
  double* weight_scale;     // (models, K): c d
  T* grad_log_d;            // (models, K)
};

template <class T>
struct WeightGradients {
  int64_t models, features, latents;
  const T* grad;                // (models)
  const T* log_sigma2;          // (models)
  const T* weight;              // (models, D, K): W
  const T* offset;              // (models, D): δ
  const T* encoded_offset;      // (models, K): a
  const T* covariance_encoder;  // (models, D, K): C
  const double* weight_scale;   // (models, K): c d
  T* grad_weight;               // (models, D, K): W Q in, dW out
  T* shortfall;                 // (models, D, K): VᵀR in, G out
  T* grad_mu;                   // (models, D): the part c (δ - W a)
};

template <class T>
struct RemainingGradients {
  int64_t models, features, latents;
  double num_features;
  const T* grad;             // (models)
  const T* log_sigma2;       // (models)
  const double* distortion;  // (models): T
  const T* offset;           // (models, D): δ
  const T* offset_pull;      // (models, K): u
  const T* pulled;           // (models, D): Vᵀu
  T* grad_encoder;           // (models, K, D): GᵀS in, dV out
  T* grad_mu;                // (models, D): c (δ - W a) in, dμ out
  T* grad_log_sigma2;        // (models)
};

// out_ji = factor_i² in_ij, or with features_first = false out_ij = factor_i² in_ji: a product with a diagonal
// covariance, transposed on the way.
template <class T>
struct DiagonalProduct {
  int64_t models, features, latents;
  bool shared;          // one factor for all models
  bool features_first;  // in is (models, D, K) and out (models, K, D); otherwise the reverse
  const T* factor;      // (models or 1, D)
  const T* in;
  T* out;
};

LINEAVAE_KERNEL(subtract_mean, OffsetArguments)
LINEAVAE_KERNEL(distortion_parts, DistortionArguments)
LINEAVAE_KERNEL(elbo, ElboArguments)
LINEAVAE_KERNEL(latent_gradients, LatentGradients)
LINEAVAE_KERNEL(weight_gradients, WeightGradients)
LINEAVAE_KERNEL(remaining_gradients, RemainingGradients)
LINEAVAE_KERNEL(diagonal_product, DiagonalProduct)

}  // namespace lineavae
