// The emulator's version of csrc/common/approximate.cuh: off by as much as a GPU may be, up or down as the argument's
// bits have it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/portable.h"

namespace lineavae::cuda {

inline float without_subnormal(float x) {
  return std::abs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

inline float off_by(int units, double exact, float argument) {
  const bool up = (bit_cast<uint32_t>(argument) * 2654435761u) >> 31;
  float result = static_cast<float>(exact);
  if (result == 0 || !std::isfinite(result)) return result;
  const float limit = up ? 2 * result : 0.0f;
  if (up ? std::abs(result) <= std::abs(exact) : std::abs(result) >= std::abs(exact)) {
    result = std::nextafter(result, limit);
  }
  for (int i = 1; i < units; ++i) result = std::nextafter(result, limit);
  return without_subnormal(result);
}

inline float approximate_exp2(float x) { return off_by(2, std::exp2(double{without_subnormal(x)}), x); }
inline float approximate_reciprocal(float x) { return off_by(1, 1 / double{without_subnormal(x)}, x); }
inline float approximate_rsqrt(float x) { return off_by(2, 1 / std::sqrt(double{without_subnormal(x)}), x); }

}  // namespace lineavae::cuda
