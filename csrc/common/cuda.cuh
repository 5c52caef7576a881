// What every CUDA kernel needs. A kernel file includes no other CUDA header, launches only by `launch`, declares shared
// memory only by LINEAVAE_SHARED and LINEAVAE_DYNAMIC_SHARED, and reads or writes several elements at once only by
// load_vector and store_vector: then the same file runs on the CPU in tests, which replace common/cuda_platform.cuh.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "common/cuda_platform.cuh"
#include "common/device.h"
#include "common/half.h"
#include "common/pieces.h"
#include "common/portable.h"

namespace lineavae::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// `shared_bytes` is the size of the kernel's LINEAVAE_DYNAMIC_SHARED.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Cuda device,
            Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  start(kernel, grid, block, shared_bytes, device.stream, static_cast<Parameters>(arguments)...);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Cuda device, Arguments&&... arguments) {
  launch(kernel, grid, block, 0, device, std::forward<Arguments>(arguments)...);
}

// Zeroes an array before the next launch.
template <class T>
void clear(T* array, int64_t count, Cuda device) {
  if (count > 0) fill_with_zeros(array, sizeof(T) * static_cast<size_t>(count), device.stream);
}

// kWidth elements read or written at once; the address is a multiple of their size, up to 16 bytes.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T) > 16 ? 16 : kWidth * sizeof(T)) Vector {
  T at[kWidth];
};

template <int kWidth, class T>
__device__ __forceinline__ Vector<T, kWidth> load_vector(const T* p) {
  return load_at_once<Vector<T, kWidth>>(p);
}

template <class T, int kWidth>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, kWidth>& v) {
  store_at_once(p, v);
}

// The address of a vector in an array of them. It costs one instruction, as a sum of elements' numbers does not.
template <int kWidth, class T>
__device__ __forceinline__ T* vector_at(T* p, int index) {
  using V = std::conditional_t<std::is_const_v<T>, const Vector<std::remove_const_t<T>, kWidth>, Vector<T, kWidth>>;
  return reinterpret_cast<T*>(reinterpret_cast<V*>(p) + index);
}

// Elements that are 16 bytes in the accumulation type.
template <class T>
constexpr int kFullWidth = 16 / sizeof(accumulate_t<T>);

// Whether arrays that start at these addresses can be read and written kWidth elements at a time.
template <int kWidth, class... T>
bool are_aligned(const T*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % alignof(Vector<T, kWidth>) == 0) && ...);
}

// A grid of `count` blocks, or an error where no grid is that long.
inline dim3 blocks(int64_t count) {
  if (count > std::numeric_limits<int32_t>::max()) throw std::runtime_error("lineavae: too large for one CUDA grid");
  return dim3(static_cast<unsigned>(count));
}

constexpr int kThreads = 256;

// As many blocks of kThreads as a kernel wants on a multiprocessor, or all that one of this architecture holds: a bound
// beyond that is ignored.
constexpr int resident(int blocks) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
  constexpr int kMost = 2048 / kThreads;
#elif __CUDA_ARCH__ >= 800
  constexpr int kMost = 1536 / kThreads;
#else
  constexpr int kMost = 1024 / kThreads;
#endif
  return std::min(blocks, kMost);
}
constexpr int kWarps = kThreads / kWarp;

// For kernels that give a warp to each row: the row of this thread's warp, and blocks enough for all rows.
__device__ __forceinline__ int64_t warp_row() { return blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarp; }
__device__ __forceinline__ int lane() { return threadIdx.x % kWarp; }
inline dim3 blocks_of_rows(int64_t rows) { return blocks((rows + kWarps - 1) / kWarps); }

// For kernels that give a thread to each index.
__device__ __forceinline__ int64_t thread_index() { return blockIdx.x * int64_t{kThreads} + threadIdx.x; }
inline dim3 blocks_of_threads(int64_t count) { return blocks((count + kThreads - 1) / kThreads); }

// Quotients of numbers below 2³¹ by one that the host knows: a product and a shift.
class Divisor {
 public:
  explicit Divisor(uint32_t divisor = 1) : divisor_(divisor) {
    while (uint64_t{1} << (shift_ - 31) < divisor) ++shift_;
    factor_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t x) const {
    return static_cast<uint32_t>(uint64_t{x} * factor_ >> shift_);
  }
  LINEAVAE_HOST_DEVICE uint32_t divisor() const { return divisor_; }

 private:
  uint32_t divisor_, factor_;
  int shift_ = 31;
};

// The same for numbers below a `limit` that may be beyond 31 bits: then a division.
class AnyDivisor {
 public:
  AnyDivisor(int64_t divisor, int64_t limit)
      : divisor_(std::max<int64_t>(divisor, 1)),
        is_small_(limit <= int64_t{1} << 31 && divisor_ <= int64_t{1} << 31),
        small_(is_small_ ? static_cast<uint32_t>(divisor_) : 1) {}
  __device__ __forceinline__ int64_t divisor() const { return divisor_; }
  __device__ __forceinline__ int64_t quotient(int64_t x) const {
    return is_small_ ? small_.quotient(static_cast<uint32_t>(x)) : x / divisor_;
  }

 private:
  int64_t divisor_;
  bool is_small_;
  Divisor small_;
};

// `combine` over groups of kLanes lanes of a warp, in every lane of each; the order is fixed.
template <int kLanes = kWarp, class T, class F>
__device__ __forceinline__ T warp_reduce(T value, const F& combine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kFullMask, value, offset));
  }
  return value;
}

template <int kLanes = kWarp, class T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce<kLanes>(value, [](T a, T b) { return a + b; });
}

// For kernels that give a warp to each piece of a row: in small blocks, so that a few rows are many of them.
constexpr int kPieceThreads = 128;
constexpr int kPieceWarps = kPieceThreads / kWarp;
inline dim3 blocks_of_pieces(int64_t rows, const Pieces& pieces) {
  dim3 grid = blocks((rows + kPieceWarps - 1) / kPieceWarps);
  grid.y = static_cast<unsigned>(pieces.count);
  return grid;
}

// The number of features in this block's piece of every row.
__device__ __forceinline__ int piece_length(const Pieces& pieces, int64_t features) {
  const int64_t left = features - blockIdx.y * int64_t{pieces.length};
  return left < pieces.length ? static_cast<int>(left) : pieces.length;
}
__device__ __forceinline__ int64_t piece_row() { return blockIdx.x * int64_t{kPieceWarps} + threadIdx.x / kWarp; }

// A warp per row adds the sums of its pieces.
template <class A>
__global__ void __launch_bounds__(kThreads) piece_sums(int64_t rows, int64_t pieces, const A* sums, A* value) {
  const int64_t row = warp_row();
  if (row >= rows) return;
  A sum = 0;
  for (int64_t piece = lane(); piece < pieces; piece += kWarp) sum += sums[row * pieces + piece];
  sum = warp_sum(sum);
  if (lane() == 0) value[row] = sum;
}

// The sum over a block of kThreads, in every thread, through one value per warp in shared memory. Ends with a barrier,
// so that `partial` can be used again at once.
template <class T>
__device__ __forceinline__ T block_sum(T value, T (&partial)[kWarps]) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) value += partial[warp];
  __syncthreads();
  return value;
}

// Whether this is the last of `count` blocks that come here, in every thread of it. That block sees what the first
// threads of the others have written before. `ticket` is 0 when the kernel starts.
__device__ __forceinline__ bool is_last_block(uint32_t* ticket, int64_t count) {
  LINEAVAE_SHARED(is_last, bool);
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(ticket, 1u) == count - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

}  // namespace lineavae::cuda

// Defines the CUDA kernel `name` for these dtypes as one launch of `cuda::name_kernel<T>`; `grid` is an expression in
// `a`.
#define LINEAVAE_CUDA_KERNEL(DTYPES, name, Arguments, grid)     \
  template <class T>                                            \
  void name(Cuda device, const Arguments<T>& a) {               \
    using namespace cuda;                                       \
    launch(&cuda::name##_kernel<T>, grid, kThreads, device, a); \
  }                                                             \
  DTYPES(LINEAVAE_INSTANTIATE, Cuda, name, Arguments)
