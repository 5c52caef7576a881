// KL divergence of diagonal Gaussians N(m, v) to N(0, I). With t = log v and φ(t) = eᵗ - 1 - t >= 0
//
//   gaussian_kl_per_dimension   KL_nk = ½ (m_nk² + φ(t_nk))
//   gaussian_kl                 KL_n  = Σ_k w_k KL_nk
//   the backward of both        ∂KL/∂m = w m,   ∂KL/∂t = ½ w (eᵗ - 1)
//
// With a = e^(t/2) - 1 these are ½ (m² + a²) + φ(t/2) and ½ w a (2 + a). Weights, and the gradient that comes in, are
// multiplied into each product first, so that a result is infinite only if it is too large itself. A weight of 0 and a
// gradient of 0 give 0, whatever the KL is.
//
// Values, weights, and the gradient that comes in, are double for double inputs and float for all others; the gradients
// that go out have the dtype of the inputs.
//
// Launches: 1 forward, 2 for more than 4096 latents; 1 backward.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"
#include "common/kl_weight.h"
#include "common/pieces.h"

namespace lineavae {

// Whether there is one value, and one incoming gradient, per row or per element.
enum class Reduction { kRow, kNone };

// Everything contiguous.
template <class T>
struct GaussianKL {
  Reduction reduction;
  int64_t rows, latents;
  const T* mean;          // (rows, latents)
  const T* logvar;        // (rows, latents)
  KLWeight<T> kl_weight;  // of the latents; for kRow alone
  accumulate_t<T>* kl;    // (rows) or (rows, latents)
  accumulate_t<T>* sums;  // of the pieces of rows: (rows, most_pieces(device, latents)); kl itself where that is 1
};

template <class T>
struct GaussianKLBackward {
  Reduction reduction;
  int64_t rows, latents;
  const accumulate_t<T>* grad;  // (rows) or (rows, latents)
  const T* mean;                // (rows, latents)
  const T* logvar;              // (rows, latents)
  KLWeight<T> kl_weight;        // of the latents; for kRow alone
  T* grad_mean;                 // (rows, latents)
  T* grad_logvar;               // (rows, latents)
};

LINEAVAE_KERNEL(gaussian_kl, GaussianKL)
LINEAVAE_KERNEL(gaussian_kl_backward, GaussianKLBackward)
// w KL from a = e^(t/2) - 1 and φ(t/2)
template <class A>
LINEAVAE_HOST_DEVICE A gaussian_kl_of_half(A mean, A a, A phi, A weight) {
  const A half = A(0.5) * weight;
  const A kl = multiply_add(half * a, a, multiply_add(half * mean, mean, weight * phi));
  return weight == A(0) ? A(0) : kl;
}

template <class A>
LINEAVAE_HOST_DEVICE A gaussian_kl_element(A mean, A logvar, A weight = A(1)) {
  const ExpParts<A> half = exp_parts(A(0.5) * logvar);
  return gaussian_kl_of_half(mean, expm1(half), expm1_minus_x(half), weight);
}

template <class A>
LINEAVAE_HOST_DEVICE A gaussian_kl_grad_logvar(A grad, A logvar) {
  const A all = expm1(exp_parts(A(0.5) * logvar));
  const A a = grad == A(0) ? A(0) : all;
  return grad * a * multiply_add(A(0.5), a, A(1));
}

}  // namespace lineavae
