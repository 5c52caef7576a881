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
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"
#include "common/kl_weight.h"
#include "common/normal.h"

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
};

template <class T>
struct ReparameterizedKLBackward : GaussianPosterior<T> {
  const accumulate_t<T>* grad_z;   // (models, samples, rows, latents)
  const accumulate_t<T>* grad_kl;  // (models, rows)
  T* grad_mean;                    // (models, rows, latents)
  T* grad_logvar;                  // (models, rows, latents)
};

template <class T>
void reparameterized_kl(Cpu, const ReparameterizedKL<T>&);
template <class T>
void reparameterized_kl(Cuda, const ReparameterizedKL<T>&);

template <class T>
void reparameterized_kl_backward(Cpu, const ReparameterizedKLBackward<T>&);
template <class T>
void reparameterized_kl_backward(Cuda, const ReparameterizedKLBackward<T>&);

// One polynomial serves both: with a = e^(t/2) - 1 and p = φ(t/2), all of which are free of cancellation,
// σ = 1 + a, φ(t) = 2 p + a² and eᵗ - 1 = a (2 + a).
template <class A>
struct GaussianElement {
  A sigma, kl;
};

template <class A>
LINEAVAE_HOST_DEVICE GaussianElement<A> gaussian_element(A mean, A logvar) {
  const A half = A(0.5) * logvar;
  const ExpParts<A> parts = exp_parts(half);
  const A a = expm1(half, parts);
  const A squares = multiply_add(a, a, mean * mean);
  return {exponential(half, parts), multiply_add(A(0.5), squares, expm1_minus_x(half, parts))};
}

template <class A>
struct GaussianElementBackward {
  A sigma, expm1;
};

template <class A>
LINEAVAE_HOST_DEVICE GaussianElementBackward<A> gaussian_element_backward(A logvar) {
  const A half = A(0.5) * logvar;
  const ExpParts<A> parts = exp_parts(half);
  const A a = expm1(half, parts);
  return {exponential(half, parts), a * (A(2) + a)};
}

}  // namespace lineavae
