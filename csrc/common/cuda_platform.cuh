// The few words of a kernel that depend on what compiles it; this is nvcc's version of them.
// tests/cuda_emulator/include holds the version with which g++ compiles the same kernels to run on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace lineavae::cuda {

template <class T>
using identity_t = T;

// An array, or one value, that the threads of a block share.
#define LINEAVAE_SHARED(name, ...) __shared__::lineavae::cuda::identity_t<__VA_ARGS__> name

// T* name: the shared memory whose size the launch gives. One per kernel.
#define LINEAVAE_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char lineavae_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(lineavae_dynamic_shared)

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  const bool is_not_served = error == cudaErrorInsufficientDriver || error == cudaErrorNoKernelImageForDevice ||
                             error == cudaErrorUnsupportedPtxVersion;
  throw std::runtime_error(std::string("lineavae: CUDA kernel: ") + cudaGetErrorString(error) +
                           (is_not_served ? "; `python -m lineavae diagnose` tells what lineavae was built for"
                                          : "; it may be an earlier kernel's: CUDA_LAUNCH_BLOCKING=1 tells"));
}

template <class... Parameters>
void start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
           Parameters... arguments) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}

inline void fill_with_zeros(void* p, size_t bytes, void* stream) {
  check(cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

// One access of sizeof(V) bytes, to an address that is a multiple of alignof(V).
template <class V>
__device__ __forceinline__ V load_at_once(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
__device__ __forceinline__ void store_at_once(void* p, const V& v) {
  *static_cast<V*>(p) = v;
}

}  // namespace lineavae::cuda
