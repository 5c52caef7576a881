// The few words that let one header compile for the CPU and for the GPU.
#pragma once

#include <cmath>
#include <cstring>

#ifdef __CUDA_ARCH__
#include "common/approximate.cuh"
#endif

#ifdef __CUDACC__
#define LINEAVAE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LINEAVAE_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace lineavae {

LINEAVAE_HOST_DEVICE float round_to_even(float x) { return rintf(x); }
LINEAVAE_HOST_DEVICE double round_to_even(double x) { return rint(x); }

LINEAVAE_HOST_DEVICE float absolute(float x) { return __builtin_fabsf(x); }
LINEAVAE_HOST_DEVICE double absolute(double x) { return __builtin_fabs(x); }

LINEAVAE_HOST_DEVICE float square_root(float x) { return sqrtf(x); }
LINEAVAE_HOST_DEVICE double square_root(double x) { return sqrt(x); }

// The same bits, for a normal number of at least 2⁻¹⁰⁰.
LINEAVAE_HOST_DEVICE float square_root_of_normal(float x) {
#ifdef __CUDA_ARCH__
  // as sqrtf, without its branch for what else there is
  const float inverse = cuda::approximate_rsqrt(x), root = x * inverse;
  return __builtin_fmaf(__builtin_fmaf(-root, root, x), 0.5f * inverse, root);
#else
  return sqrtf(x);
#endif
}
LINEAVAE_HOST_DEVICE double square_root_of_normal(double x) { return sqrt(x); }

// a b + c, rounded once: written out wherever a value must not depend on where the compiler would contract.
LINEAVAE_HOST_DEVICE float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
LINEAVAE_HOST_DEVICE double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

// The same bits as another type.
template <class To, class From>
LINEAVAE_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

constexpr double kLog2Pi = 1.8378770664093454836;

}  // namespace lineavae
