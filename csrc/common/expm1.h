// eˣ, eˣ - 1 and φ(x) = eˣ - 1 - x, accurate to a few roundings for every x and vectorisable: no branch, no table, no
// libm. The same code runs on the CPU, on the GPU and in tests.
//
// Each is made of those at h = x / 2. With a = eʰ - 1
//
//     eˣ = (eʰ)²,   eˣ - 1 = a (2 + a),   φ(x) = a² + 2 φ(h)
//
// so that what leaves the range of T does so in the last multiplication and nowhere before: too large a result is
// infinite, too small a one is rounded, and a weight w that brings it back is in time as (w a)(2 + a).
//
// With n = round(h / ln 2), r = h - n ln 2, s = 2ⁿ and the polynomial r² q(r) = eʳ - 1 - r, |r| <= ln 2 / 2:
//
//     eʰ = s (r² q + r) + s,   eʰ - 1 = s (r² q + r) + (s - 1),   φ(h) = r² q for n = 0, otherwise (eʰ - 1) - h
//
// None of these cancels: for n = 0 the second is r² q + r, and for n != 0 the third is at least 0.05.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/portable.h"

namespace lineavae {

template <class T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Integer = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts, the first with so few bits that n * kLn2High is exact
  static constexpr float kLn2High = 0.693145752f;
  static constexpr float kLn2Low = 1.42860677e-6f;
  // eʰ and 2ⁿ are normal numbers in between; outside (eʰ)² is 0 or infinite
  static constexpr float kMin = -87.0f;
  static constexpr float kMax = 88.376f;
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // (eʳ - 1 - r) / r² on |r| <= ln 2 / 2, minimax, highest power first
  static constexpr int kTerms = 6;
  LINEAVAE_HOST_DEVICE static float coefficient(int i) {
    constexpr float c[kTerms] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    return c[i];
  }
};

template <>
struct ExpTraits<double> {
  using Integer = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kMin = -708.0;
  static constexpr double kMax = 709.43;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // the Taylor series 1/2! + r/3! + ...; the first term left out is below 1e-17 of the sum
  static constexpr int kTerms = 13;
  LINEAVAE_HOST_DEVICE static double coefficient(int i) {
    constexpr double c[kTerms] = {
        1.0 / 87178291200.0, 1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0,
        1.0 / 362880.0,      1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,
        1.0 / 24.0,          1.0 / 6.0,          1.0 / 2.0};
    return c[i];
  }
};

template <class T>
struct ExpParts {
  T h;                  // as given, at most kMax
  T n, r, scale, tail;  // eʰ = scale * (1 + r + tail) with scale = 2ⁿ, tail = eʳ - 1 - r
};

// `clamped` is h in [kMin, kMax].
template <class T>
LINEAVAE_HOST_DEVICE ExpParts<T> exp_parts_in_range(T clamped) {
  using Traits = ExpTraits<T>;
  using Bits = std::make_unsigned_t<typename Traits::Integer>;
  // Added to a number it rounds it to an integer, which stands with the bias in the last bits; a NaN stays one.
  constexpr T kShift = static_cast<T>((Bits{3} << (Traits::kMantissaBits - 1)) + Traits::kExponentBias);
  const T shifted = multiply_add(clamped, Traits::kLog2E, kShift);
  const T n = shifted - kShift;
  const T r = multiply_add(n, -Traits::kLn2Low, multiply_add(n, -Traits::kLn2High, clamped));
  T q = Traits::coefficient(0);
  for (int i = 1; i < Traits::kTerms; ++i) q = multiply_add(q, r, Traits::coefficient(i));
  return {clamped, n, r, bit_cast<T>(bit_cast<Bits>(shifted) << Traits::kMantissaBits), q * r * r};
}

template <class T>
LINEAVAE_HOST_DEVICE ExpParts<T> exp_parts(T h) {
  using Traits = ExpTraits<T>;
  const T bounded = h > Traits::kMax ? Traits::kMax : h;
  ExpParts<T> parts = exp_parts_in_range(bounded < Traits::kMin ? Traits::kMin : bounded);
  parts.h = bounded;
  return parts;
}

// At h itself.
template <class T>
LINEAVAE_HOST_DEVICE T exponential(const ExpParts<T>& e) {
  return multiply_add(e.scale, e.tail + e.r, e.scale);
}
template <class T>
LINEAVAE_HOST_DEVICE T expm1(const ExpParts<T>& e) {
  return multiply_add(e.scale, e.tail + e.r, e.scale - T(1));
}
template <class T>
LINEAVAE_HOST_DEVICE T expm1_minus_x(const ExpParts<T>& e) {
  return e.n == T(0) ? e.tail : expm1(e) - e.h;
}

template <class T>
LINEAVAE_HOST_DEVICE T exponential(T x) {
  const T root = exponential(exp_parts(T(0.5) * x));
  return root * root;
}
// e⁻ˣ for x >= 0.
template <class T>
LINEAVAE_HOST_DEVICE T decay(T x) {
  const T h = T(-0.5) * x, root = exponential(exp_parts_in_range(h < ExpTraits<T>::kMin ? ExpTraits<T>::kMin : h));
  return root * root;
}
// 2ˣ where that is a normal number, in float in fewer steps and to 2.5e-7, with a polynomial for |r| <= ½ that
// tests/ops/fit_softplus_mixture.py derives.
LINEAVAE_HOST_DEVICE float exp2_in_range(float x) {
  using Traits = ExpTraits<float>;
  constexpr float kShift = 0x1.8p23f + Traits::kExponentBias;  // rounds as in exp_parts_in_range
  const float shifted = x + kShift, r = x - (shifted - kShift);
  float q = 0.00133908634f;
  q = multiply_add(q, r, 0.00967603192f);
  q = multiply_add(q, r, 0.0555035711f);
  q = multiply_add(q, r, 0.240221075f);
  q = multiply_add(q, r, 0.693147188f);
  q = multiply_add(q, r, 1.00000008f);
  return q * bit_cast<float>(bit_cast<uint32_t>(shifted) << Traits::kMantissaBits);
}
LINEAVAE_HOST_DEVICE double exp2_in_range(double x) {
  return exponential(exp_parts_in_range(0.69314718055994530942 * x));
}
template <class T>
LINEAVAE_HOST_DEVICE T expm1(T x) {
  const T a = expm1(exp_parts(T(0.5) * x));
  return a * (T(2) + a);
}
template <class T>
LINEAVAE_HOST_DEVICE T expm1_minus_x(T x) {
  const ExpParts<T> half = exp_parts(T(0.5) * x);
  const T a = expm1(half);
  return multiply_add(a, a, T(2) * expm1_minus_x(half));
}

}  // namespace lineavae
