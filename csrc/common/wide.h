// The type to go on in where a product or a sum leaves the range of float, or of double, on the way to a result that
// does not: double for float, Wide for double. Both are for what is rare; nothing here is fast.
#pragma once

#include <cstdint>
#include <limits>

#include "common/expm1.h"
#include "common/portable.h"

// Before a loop that is rare: its body once, so that it does not take the registers of the loops that are not.
#ifdef __CUDACC__
#define LINEAVAE_ROLLED _Pragma("unroll 1")
#else
#define LINEAVAE_ROLLED
#endif

namespace lineavae {

template <class A>
LINEAVAE_HOST_DEVICE bool is_finite(A x) {
  return x - x == 0;
}

// weight * value, and 0 where the weight is 0: that switches even an infinity off.
LINEAVAE_HOST_DEVICE double weighted(double weight, double value) { return weight == 0 ? 0.0 : weight * value; }

constexpr double kSmallestNormal = std::numeric_limits<double>::min();  // which is no function of the device

// mantissa 2^exponent, with the precision of a double and a range that nothing here leaves.
class Wide {
 public:
  LINEAVAE_HOST_DEVICE Wide(double x) : Wide(x, 0) {}
  LINEAVAE_HOST_DEVICE Wide(double mantissa, int exponent) : mantissa_(mantissa), exponent_(exponent) {
    if (mantissa == 0) {
      exponent_ = -kOutside;
    } else if (!is_finite(mantissa)) {
      exponent_ = kOutside;
    } else {
      const bool subnormal = magnitude(mantissa) < kSmallestNormal;
      uint64_t bits = bit_cast<uint64_t>(subnormal ? mantissa * 0x1p64 : mantissa);
      exponent_ += static_cast<int>(bits >> 52 & 0x7ff) - 1023 - (subnormal ? 64 : 0);
      bits = (bits & ~(uint64_t{0x7ff} << 52)) | uint64_t{1023} << 52;
      mantissa_ = bit_cast<double>(bits);  // in [1, 2), with its sign
    }
  }

  // The nearest double, gradually down to 0.
  LINEAVAE_HOST_DEVICE explicit operator double() const {
    const int exponent = exponent_ < -1200 ? -1200 : exponent_ > 1200 ? 1200 : exponent_;
    return mantissa_ * power_of_two(exponent / 2) * power_of_two(exponent - exponent / 2);
  }

  LINEAVAE_HOST_DEVICE Wide operator*(Wide other) const {
    return {mantissa_ * other.mantissa_, exponent_ + other.exponent_};
  }
  LINEAVAE_HOST_DEVICE Wide operator+(Wide other) const {
    const bool swap = exponent_ < other.exponent_;
    const double large = swap ? other.mantissa_ : mantissa_, small = swap ? mantissa_ : other.mantissa_;
    const int shift = swap ? exponent_ - other.exponent_ : other.exponent_ - exponent_;
    const double shifted = shift < -200 ? 0.0 : small * power_of_two(shift);
    return {large + shifted, swap ? other.exponent_ : exponent_};
  }

 private:
  static constexpr int kOutside = 1 << 24;  // the exponent of 0 is below, that of infinity and NaN above all others
  LINEAVAE_HOST_DEVICE static double magnitude(double x) { return x < 0 ? -x : x; }
  LINEAVAE_HOST_DEVICE static double power_of_two(int n) {
    return bit_cast<double>(static_cast<uint64_t>(n + 1023) << 52);
  }

  double mantissa_;
  int exponent_;
};

template <class A>
struct Wider;
template <>
struct Wider<float> {
  using type = double;
};
template <>
struct Wider<double> {
  using type = Wide;
};
template <class A>
using wider_t = typename Wider<A>::type;

// eˣ. Beyond ±700 for float and ±100 000 for double that of the limit: a factor out of any result's range, but no 0 or
// infinity, so that its product with a 0 is 0.
template <class A>
LINEAVAE_HOST_DEVICE wider_t<A> wide_exponential(A x) {
  constexpr double kLimit = sizeof(A) == sizeof(float) ? 700.0 : 100000.0;
  double clamped = x < -kLimit ? -kLimit : x;
  clamped = clamped > kLimit ? kLimit : clamped;
  if constexpr (sizeof(A) == sizeof(float)) {
    return exponential(clamped);
  } else {
    if (clamped != clamped) return clamped;
    const double n = round_to_even(clamped * ExpTraits<double>::kLog2E);
    const double rest =
        multiply_add(n, -ExpTraits<double>::kLn2Low, multiply_add(n, -ExpTraits<double>::kLn2High, clamped));
    return {exponential(rest), static_cast<int>(n)};
  }
}

}  // namespace lineavae
