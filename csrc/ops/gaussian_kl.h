// KL divergence of diagonal Gaussians N(m, v) to N(0, I). With t = log v and φ(t) = eᵗ - 1 - t >= 0
//
//   gaussian_kl_per_dimension   KL_nk = ½ (m_nk² + φ(t_nk))
//   gaussian_kl                 KL_n  = Σ_k w_k KL_nk
//   the backward of both        ∂KL/∂m = w m,   ∂KL/∂t = ½ w (eᵗ - 1)
//
// Values, weights, and the gradient that comes in, are double for double inputs and float for all others; the gradients
// that go out have the dtype of the inputs.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"
#include "common/kl_weight.h"

namespace lineavae {

// Whether there is one value, and one incoming gradient, per row or per element.
enum class Reduction { kRow, kNone };

// Everything contiguous.
template <class T>
struct GaussianKL {
  int64_t rows, latents;
  const T* mean;          // (rows, latents)
  const T* logvar;        // (rows, latents)
  KLWeight<T> kl_weight;  // of the latents; for kRow alone
  accumulate_t<T>* kl;    // (rows) or (rows, latents)
};

template <class T>
struct GaussianKLBackward {
  int64_t rows, latents;
  const accumulate_t<T>* grad;  // (rows) or (rows, latents)
  const T* mean;                // (rows, latents)
  const T* logvar;              // (rows, latents)
  KLWeight<T> kl_weight;        // of the latents; for kRow alone
  T* grad_mean;                 // (rows, latents)
  T* grad_logvar;               // (rows, latents)
};

template <Reduction R, class T>
void gaussian_kl(Cpu, const GaussianKL<T>&);
template <Reduction R, class T>
void gaussian_kl(Cuda, const GaussianKL<T>&);

template <Reduction R, class T>
void gaussian_kl_backward(Cpu, const GaussianKLBackward<T>&);
template <Reduction R, class T>
void gaussian_kl_backward(Cuda, const GaussianKLBackward<T>&);

template <class A>
LINEAVAE_HOST_DEVICE A gaussian_kl_element(A mean, A logvar) {
  return A(0.5) * multiply_add(mean, mean, expm1_minus_x(logvar));
}

template <class A>
LINEAVAE_HOST_DEVICE A gaussian_kl_grad_logvar(A logvar) {
  return A(0.5) * expm1(logvar);
}

}  // namespace lineavae
