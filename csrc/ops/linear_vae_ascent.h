// Gradient ascent on the mean analytic ELBO of many linear VAEs of one size, with μ at the sample mean.
//
// For each model, with c = 1/σ², S the covariance of the data, C = S Vᵀ, M = WᵀW and Q = V C:
//
//   R    = c M + β I                               G       = c W - Vᵀ R
//   dW   = c (C - W (Q + diag d))                  dlog d  = ½ (β (1 - d) - c d diag(M))
//   dVᵀ  = S G                                     dlog σ² = ½ (c T - (D + omitted features))
//   T    = Σ_k d_k M_kk + Σ_kl M_kl Q_kl - 2 Σ_ik W_ik C_ik + tr S + omitted variance
//
// Omitted are directions of the data in which W and V are zero. Subtracting before multiplying by S keeps dV accurate
// near the optimum, where G vanishes. Step t (from 1) of Adam, for the gradient g of a parameter x:
//
//   m += (1 - β₁) (g - m),  v = β₂ v + (1 - β₂) g²,  x += lr / (1 - β₁ᵗ) m / (√v / √(1 - β₂ᵗ) + ε)
//
// and without moments x += lr g. A model that is not finite stays so; one whose ‖g‖ is below the tolerance stops after
// that step. Nothing of one model depends on another.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"

namespace lineavae {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;  // those of torch.optim.Adam

// W (D, K), Vᵀ (D, K), log d (K), log σ², one after the other.
LINEAVAE_HOST_DEVICE int64_t num_parameters(int64_t features, int64_t latents) {
  return 2 * features * latents + latents + 1;
}

// What a block of the CUDA kernel has room for. Steps of larger models are products by torch with two kernels between.
constexpr int kBlockFeatures = 64, kBlockLatents = 16;

struct BiasCorrection {
  double mean, root;  // of Adam: 1 / (1 - β₁ᵗ) and 1 / √(1 - β₂ᵗ)
};

template <class T>
struct BiasCorrections {
  int64_t steps, first_step;    // that many steps were taken before
  BiasCorrection* corrections;  // (steps)
};

LINEAVAE_HOST_DEVICE BiasCorrection bias_correction(int64_t steps_before) {
  const double t = static_cast<double>(steps_before + 1);
  return {1 / (1 - pow(kBeta1, t)), 1 / sqrt(1 - pow(kBeta2, t))};
}

template <class T>
struct AscentArguments {
  int64_t models, features, latents, steps, omitted_features;
  bool adam, learn_sigma2;
  double tolerance, omitted_variance;
  const BiasCorrection* corrections;  // (steps)
  const T* covariance;                // (D, D): S
  const T* lr;                        // (models, steps)
  const T* beta;                      // (models, steps)
  const bool* trains;                 // (models)
  const T* start;                     // (models, num_parameters)
  const T* start_first;               // (models, num_parameters): m, with adam
  const T* start_second;              // (models, num_parameters): v, with adam
  T* parameters;                      // (models, num_parameters)
  T* first_moment;                    // (models, num_parameters), with adam
  T* second_moment;                   // (models, num_parameters), with adam
  bool* active;                       // (models)
  int64_t* steps_taken;               // (models)
  T* gradient_norm;                   // (models)
};

// One step by products, from the state that `ascent` gives out: after those for C, M and Q, `pull` makes their factors
// M + β σ² I = σ² R and Q + diag d; `move` takes what they and S give.
template <class T>
struct ProductStep {
  AscentArguments<T> ascent;
  int64_t step;                 // of this call
  const T* covariance_encoder;  // (models, D, K): C
  T* gram;                      // (models, K, K): M, becomes σ² R
  T* aggregate;                 // (models, K, K): Q, becomes Q + diag d
  T* grad_log_d;                // (models, K)
  T* distortion;                // (models): T
  const T* weight_pull;         // (models, D, K): W (Q + diag d)
  const T* encoder_rise;        // (models, D, K): S (W - Vᵀ σ² R), which is σ² dVᵀ
};

LINEAVAE_KERNEL(bias_corrections, BiasCorrections)
LINEAVAE_KERNEL(ascend, AscentArguments)
template <class T>
void pull(Cuda, const ProductStep<T>&);
template <class T>
void move(Cuda, const ProductStep<T>&);

}  // namespace lineavae
