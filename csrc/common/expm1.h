// φ(x) = eˣ - 1 - x, eˣ - 1 and eˣ, accurate to rounding for every x and vectorisable: no branch, no table, no libm.
// The same code runs on the CPU, on the GPU and in tests.
//
// With n = round(x / ln 2), r = x - n ln 2, s = 2ⁿ and the polynomial r² q(r) = eʳ - 1 - r, |r| <= ln 2 / 2:
//
//     eˣ - 1     = s (r² q + r) + (s - 1)
//     eˣ - 1 - x = s r² q + ((s - 1) r + (s - 1 - n ln 2))
//
// For n = 0 the second line is r² q alone, which has no cancellation; for n != 0 the result is at least 0.05.
#pragma once

#include <cstdint>
#include <limits>

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
  static constexpr float kLn2 = 0.693147182f;
  // 2ⁿ is a normal number in between; outside φ is linear or infinite
  static constexpr float kMin = -87.0f;
  static constexpr float kMax = 88.0f;
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
  static constexpr double kLn2 = 0.69314718055994530942;
  static constexpr double kMin = -708.0;
  static constexpr double kMax = 709.0;
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
  T clamped, n, r, scale, tail;  // eˣ = scale * (1 + r + tail) with tail = eʳ - 1 - r
};

// `clamped` is in [kMin, kMax].
template <class T>
LINEAVAE_HOST_DEVICE ExpParts<T> exp_parts_in_range(T clamped) {
  using Traits = ExpTraits<T>;
  using Integer = typename Traits::Integer;
  const T n = round_to_even(clamped * Traits::kLog2E);
  const T r = multiply_add(n, -Traits::kLn2Low, multiply_add(n, -Traits::kLn2High, clamped));
  T q = Traits::coefficient(0);
  for (int i = 1; i < Traits::kTerms; ++i) q = multiply_add(q, r, Traits::coefficient(i));
  const Integer bits = (static_cast<Integer>(n) + Traits::kExponentBias) << Traits::kMantissaBits;
  return {clamped, n, r, bit_cast<T>(bits), q * r * r};
}

template <class T>
LINEAVAE_HOST_DEVICE ExpParts<T> exp_parts(T x) {
  using Traits = ExpTraits<T>;
  T clamped = x < Traits::kMin ? Traits::kMin : x;
  clamped = clamped > Traits::kMax ? Traits::kMax : clamped;
  return exp_parts_in_range(clamped);
}

// φ, eˣ and eˣ - 1 from the parts of x, for those who need several of them.
template <class T>
LINEAVAE_HOST_DEVICE T expm1_minus_x(T x, const ExpParts<T>& e) {
  using Traits = ExpTraits<T>;
  const T excess = e.scale - T(1);
  const T offset = multiply_add(e.n, -Traits::kLn2, excess);
  const T value = multiply_add(e.scale, e.tail, multiply_add(excess, e.r, offset));
  // below kMin the function is -1 - x, so what the clamp cut off is added back
  return x > Traits::kMax ? Traits::kInfinity : value + (e.clamped - x);
}

// eˣ, at least that of kMin.
template <class T>
LINEAVAE_HOST_DEVICE T exponential(T x, const ExpParts<T>& e) {
  const T value = multiply_add(e.scale, e.tail + e.r, e.scale);
  return x > ExpTraits<T>::kMax ? ExpTraits<T>::kInfinity : value;
}

template <class T>
LINEAVAE_HOST_DEVICE T expm1(T x, const ExpParts<T>& e) {
  const T value = multiply_add(e.scale, e.tail + e.r, e.scale - T(1));
  return x > ExpTraits<T>::kMax ? ExpTraits<T>::kInfinity : value;
}

template <class T>
LINEAVAE_HOST_DEVICE T expm1_minus_x(T x) {
  return expm1_minus_x(x, exp_parts(x));
}
template <class T>
LINEAVAE_HOST_DEVICE T exponential(T x) {
  return exponential(x, exp_parts(x));
}
template <class T>
LINEAVAE_HOST_DEVICE T expm1(T x) {
  return expm1(x, exp_parts(x));
}

}  // namespace lineavae
