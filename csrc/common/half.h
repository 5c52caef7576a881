// float16 and bfloat16 as bits, with conversions that are free of branches, so that CPU loops over them vectorise.
// Everything is computed in accumulate_t<T>: float for the half types, T itself otherwise.
#pragma once

#include <cstdint>

#include "common/portable.h"

#ifdef __CUDA_ARCH__
#include <cuda_fp16.h>
#endif

namespace lineavae {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Accumulate {
  using type = T;
};
template <>
struct Accumulate<BFloat16> {
  using type = float;
};
template <>
struct Accumulate<Float16> {
  using type = float;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

LINEAVAE_HOST_DEVICE float load(float x) { return x; }
LINEAVAE_HOST_DEVICE double load(double x) { return x; }
LINEAVAE_HOST_DEVICE float load(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
LINEAVAE_HOST_DEVICE float load(Float16 x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  constexpr uint32_t kExponent = 0x7c00u << 13;
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & kExponent;
  // rebias the exponent; that of infinities and NaNs goes to the top; a subtraction normalises subnormals
  const uint32_t rebased = magnitude + (112u << 23) + (exponent == kExponent ? 112u << 23 : 0u);
  const float subnormal = bit_cast<float>(rebased + (1u << 23)) - bit_cast<float>(113u << 23);
  return bit_cast<float>((exponent == 0 ? bit_cast<uint32_t>(subnormal) : rebased) | (uint32_t{x.bits} & 0x8000u)
                                                                                         << 16);
#endif
}

LINEAVAE_HOST_DEVICE void store(float x, float& out) { out = x; }
LINEAVAE_HOST_DEVICE void store(double x, double& out) { out = x; }
LINEAVAE_HOST_DEVICE void store(float x, BFloat16& out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
LINEAVAE_HOST_DEVICE void store(float x, Float16& out) {
#ifdef __CUDA_ARCH__
  out.bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t sign = (bit_cast<uint32_t>(x) >> 16) & 0x8000u;
  const uint32_t magnitude = bit_cast<uint32_t>(x) & 0x7fffffffu;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  // adding ½ rounds to a multiple of 2⁻²⁴, the unit of subnormals
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  out.bits = static_cast<uint16_t>(sign | (magnitude >= (143u << 23) ? special : finite));
#endif
}

}  // namespace lineavae
