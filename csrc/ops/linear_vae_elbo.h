// Analytic ELBO of the linear VAE per sample: what is fused around the matrix products.
//
// For each model, with r_n = x_n - μ, h_n = V r_n and e_n = r_n - W h_n:
//
//   T_n      = ‖e_n‖² + Σ_k d_k ‖w_k‖²
//   ELBO_n   = -T_n / (2σ²) - (D/2) log(2πσ²) - (β/2) (Σ_k φ(log d_k) + ‖h_n‖²)
//
// Gradients, g_n the ones that come in, G = Σ_n g_n:
//
//   dh_n   = g_n (Wᵀe_n / σ² - β h_n)          u  = Wᵀ(Σ_n g_n e_n) / σ² - β Σ_n g_n h_n  ( = Σ_n dh_n )
//   dW     = Σ_n e_n (g_n h_n)ᵀ / σ² - G W diag(d) / σ²
//   dV     = Σ_n dh_n r_nᵀ                     dμ = Σ_n g_n e_n / σ² - Vᵀu
//   dx_n   = Vᵀdh_n - g_n e_n / σ²
//   dlog d = -½ G (β (d - 1) + d ‖w‖² / σ²)    dlog σ² = ½ (Σ_n g_n T_n / σ² - G D)
//
// T is kept in double, and so are the factors with 1/σ² until they meet what they multiply: they may overflow a float
// where the product does not. A weight β of 0 switches the KL off, infinite or not. All arrays are contiguous, the
// first dimension is over models, and every reduction has a fixed order.
//
// One product gives Σ_n e_n (g_n h_n)ᵀ and Σ_n g_n e_n: g is one more column of the code.
//
// Launches: forward 4 and 2 products, backward 3 and 3 products and 3 with a vector; where x requires grad, one more
// product and a few of torch's; 1 more where beta is a number.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/wide.h"

namespace lineavae {

template <class T>
struct CentreArguments {
  int64_t models, samples, features;
  bool shared;  // one x for all models
  const T* x;   // (models or 1, N, D)
  const T* mu;  // (models, D)
  T* centred;   // (models, N, D): r
};

template <class T>
struct ColumnNormArguments {
  int64_t models, features, latents;
  const T* weight;  // (models, D, K)
  T* column_norms;  // (models, K): ‖w_k‖²
};

template <class T>
struct LatentConstants {
  int64_t models, latents;
  const T* column_norms;  // (models, K)
  const T* log_d;         // (models, K)
  double* spread;         // (models): Σ_k d_k ‖w_k‖²
  double* divergence;     // (models): Σ_k φ(log d_k)
};

template <class T>
struct ResidualArguments {
  int64_t models, samples, features, latents;
  const T* centred;          // (models, N, D): r
  const T* code;             // (models, N, K): h
  const double* spread;      // (models)
  const double* divergence;  // (models)
  const T* log_sigma2;       // (models)
  const T* beta;             // (models)
  T* residual;               // (models, N, D): W h in, e out
  double* distortion;        // (models, N): T
  T* elbo;                   // (models, N)
};

// Columns of the code with g beside it: as many more as make rows whole sectors, and products fast.
LINEAVAE_HOST_DEVICE int64_t scaled_columns(int64_t latents) { return (latents + 8) / 8 * 8; }

template <class T>
struct CodeGradients {
  int64_t models, samples, latents;
  const T* grad;        // (models, N)
  const T* log_sigma2;  // (models)
  const T* beta;        // (models)
  const T* code;        // (models, N, K): h
  T* grad_code;         // (models, N, K): Wᵀe in, dh out
  T* scaled_code;       // (models, N, scaled_columns(K)): g h, g, zeros
};

template <class T>
struct SampleSums {
  int64_t models, samples, latents;
  double num_features;
  const T* grad;             // (models, N)
  const double* distortion;  // (models, N): T
  const T* log_d;            // (models, K)
  const T* log_sigma2;       // (models)
  const T* beta;             // (models)
  const T* column_norms;     // (models, K)
  const T* residual_pull;    // (models, K): Wᵀ Σ g e
  const T* code_sum;         // (models, K): Σ g h
  double* weight_scale;  // (models, K): G d / σ², in double: it may overflow a float where its product with w does not
  T* encoder_pull;       // (models, K): u
  T* grad_log_d;         // (models, K)
  T* grad_log_sigma2;    // (models)
};

template <class T>
struct DecoderGradients {
  int64_t models, features, latents;
  const T* log_sigma2;         // (models)
  const T* weight;             // (models, D, K)
  const double* weight_scale;  // (models, K): G d / σ²
  const T* residual_sums;      // (models, D, scaled_columns(K)): Σ e (g h)ᵀ, Σ g e, zeros
  const T* pulled;             // (models, D): Vᵀu
  T* grad_weight;              // (models, D, K)
  T* grad_mu;                  // (models, D)
};

LINEAVAE_KERNEL(centre, CentreArguments)
LINEAVAE_KERNEL(column_norms, ColumnNormArguments)
LINEAVAE_KERNEL(latent_constants, LatentConstants)
LINEAVAE_KERNEL(residual, ResidualArguments)
LINEAVAE_KERNEL(code_gradients, CodeGradients)
LINEAVAE_KERNEL(sample_sums, SampleSums)
LINEAVAE_KERNEL(decoder_gradients, DecoderGradients)

}  // namespace lineavae
