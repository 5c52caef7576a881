// Samples of diagonal Gaussians N(m, v) and their KL divergence to N(0, I), from one pass over t = log v:
//
//   z_snk = m_nk + σ_nk ε_snk,   σ = e^(t/2)
//   KL_n  = Σ_k w_k ½ (m_nk² + φ(t_nk)),   φ(t) = eᵗ - 1 - t >= 0
//
// ε is the standard normal noise of common/normal.h at the index of z_snk within its model, so a model in an ensemble
// is the same as alone. The backward makes the same noise again. With the gradients g of z and h of KL:
//
//   ∂/∂m = Σ_s g_snk + h_n w_k m_nk,   ∂/∂t = ½ (σ_nk Σ_s g_snk ε_snk + h_n w_k (eᵗ - 1))
//
// Values, weights, and the gradients that come in, are double for double inputs and float for all others; the gradients
// that go out have the dtype of the inputs.
//
// Launches: 1 forward, 2 for more than 4096 latents, and 1 that draws the seed; 1 backward.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"
#include "common/kl_weight.h"
#include "common/normal.h"
#include "common/pieces.h"
#include "ops/gaussian_kl.h"

namespace lineavae {

// What forward and backward read. Everything contiguous.
template <class T>
struct GaussianPosterior {
  int64_t models, samples, rows, latents;
  const T* mean;          // (models, rows, latents)
  const T* logvar;        // (models, rows, latents)
  KLWeight<T> kl_weight;  // of the latents, in groups by model
  const int64_t* seed;    // (models)
};

template <class T>
struct ReparameterizedKL : GaussianPosterior<T> {
  accumulate_t<T>* z;   // (models, samples, rows, latents)
  accumulate_t<T>* kl;  // (models, rows)
  accumulate_t<T>*
      sums;  // of the pieces of rows: (models, rows, most_pieces(device, latents)); kl itself where that is 1
};

template <class T>
struct ReparameterizedKLBackward : GaussianPosterior<T> {
  const accumulate_t<T>* grad_z;   // (models, samples, rows, latents)
  const accumulate_t<T>* grad_kl;  // (models, rows)
  T* grad_mean;                    // (models, rows, latents)
  T* grad_logvar;                  // (models, rows, latents)
};

LINEAVAE_KERNEL(reparameterized_kl, ReparameterizedKL)
LINEAVAE_KERNEL(reparameterized_kl_backward, ReparameterizedKLBackward)
// One polynomial serves all: at t/4, with ρ = e^(t/4), b = ρ - 1 and φ(t/4), of which none leaves the range of A,
//
//   σ = ρ²,   a = σ - 1 = b (2 + b),   φ(t/2) = b² + 2 φ(t/4)
template <class A>
struct GaussianElement {
  A rho, kl;
};

template <class A>
LINEAVAE_HOST_DEVICE GaussianElement<A> gaussian_element(A mean, A logvar, A weight = A(1)) {
  const ExpParts<A> quarter = exp_parts(A(0.25) * logvar);
  const A b = expm1(quarter);
  const A phi = multiply_add(b, b, A(2) * expm1_minus_x(quarter));
  return {exponential(quarter), gaussian_kl_of_half(mean, b * (A(2) + b), phi, weight)};
}

// m + σ ε
template <class A>
LINEAVAE_HOST_DEVICE A gaussian_sample(A mean, A rho, A noise) {
  return multiply_add(rho * noise, rho, mean);
}

template <class A>
struct GaussianGradients {
  A mean, logvar;
};

// From Σ g, Σ g ε and u = h w. With e^t - 1 = σ a + a nothing infinite is subtracted:
//
//   ∂/∂t = σ ½ (Σ g ε + u a) + ½ u a
template <class A>
LINEAVAE_HOST_DEVICE GaussianGradients<A> gaussian_gradients(A mean, A logvar, A sum, A product, A of_kl) {
  const ExpParts<A> quarter = exp_parts(A(0.25) * logvar);
  const A rho = exponential(quarter), b = expm1(quarter);
  const A half = weighted(A(0.5) * of_kl, b * (A(2) + b));
  return {sum + weighted(of_kl, mean), multiply_add(rho * multiply_add(A(0.5), product, half), rho, half)};
}

}  // namespace lineavae
