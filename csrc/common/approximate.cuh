// One instruction each, where a few units in the last place do not matter: what is subnormal, in or out, is 0.
// tests/cuda_emulator/include holds the version with the largest error that the PTX manual allows.
#pragma once

namespace lineavae::cuda {

// 2ˣ, to 2 units in the last place.
__device__ __forceinline__ float approximate_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1/x, to 1.
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1/√x, to 2.
__device__ __forceinline__ float approximate_rsqrt(float x) {
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace lineavae::cuda
