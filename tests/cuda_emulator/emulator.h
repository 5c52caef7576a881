// CUDA for g++: runs kernels on the CPU, one thread at a time, to prove them without a GPU.
//
// The threads of a block are fibers of one OS thread, switched wherever CUDA lets threads wait for each other: at
// barriers, warp collectives and, in the random schedule, atomics. Blocks run one after another. Found by itself:
// threads that diverge at a barrier or collective, a barrier after a thread has exited, masks that name absent lanes,
// deadlock, launches no GPU takes, and the use of shared memory nobody wrote (a block's is filled with 0xff, NaN as a
// float). With -fsanitize=address,undefined: accesses out of bounds, of dynamic shared memory too, and misaligned
// ones. With -fsanitize=thread: data races within a block and between blocks, in any schedule.
//
// First half: the language. Second half, namespace cuda_emulator: what it is made of, implemented in emulator.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cuda_emulator {

// In which order the threads of a block, and the blocks, take their turns.
enum class Order { kAscending, kDescending, kRandom };
constexpr Order kOrders[] = {Order::kAscending, Order::kDescending, Order::kRandom};
const char* name_of(Order order);

// LINEAVAE_EMULATOR_ORDER (ascending, descending or random) sets it at the start, LINEAVAE_EMULATOR_SEED the seed.
void set_order(Order order);

// Runs the kernel, given as a function of no arguments, on every thread of the grid. Throws std::runtime_error where
// CUDA's behaviour is undefined.
void launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& kernel);

struct Place {
  uint3 thread, block;
};
extern const Place* place;  // of the thread that runs
extern dim3 grid_size, block_size;

enum class Collective { kSyncWarp, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kBallot, kAny, kAll };

// Calls are told apart by where they stand in the source.
struct Source {
  const char* file;
  int line;
};

struct BarrierVotes {
  int count;  // of threads whose predicate was not zero
  bool any, all;
};
BarrierVotes barrier(bool predicate, Source source);
uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width, Source source);
void fence();
void before_atomic();                             // others may run
void* shared(const void* key, size_t num_bytes);  // one object per block and key
void* dynamic_shared();

template <class T>
T warp_collective(Collective kind, unsigned mask, T value, int argument, int width, Source source) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = collective(kind, mask, bits, argument, width, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// *p becomes f(*p); like CUDA's atomics it orders nothing else.
template <class T, class F>
T atomic(T* p, const F& f) {
  before_atomic();
  T before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do after = f(before);
  while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

// A type of the same size that may alias any other and is read by one instruction.
template <size_t kSize>
struct Word;
template <>
struct Word<1> {
  typedef uint8_t type __attribute__((may_alias));
};
template <>
struct Word<2> {
  typedef uint16_t type __attribute__((may_alias));
};
template <>
struct Word<4> {
  typedef uint32_t type __attribute__((may_alias));
};
template <>
struct Word<8> {
  typedef uint64_t type __attribute__((may_alias));
};
template <>
struct Word<16> {
  typedef uint64_t type __attribute__((vector_size(16), may_alias));
};

}  // namespace cuda_emulator

#define threadIdx (::cuda_emulator::place->thread)
#define blockIdx (::cuda_emulator::place->block)
#define blockDim (::cuda_emulator::block_size)
#define gridDim (::cuda_emulator::grid_size)

// A default argument is evaluated where the call stands.
#define CUDA_EMULATOR_SOURCE cuda_emulator::Source source = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(CUDA_EMULATOR_SOURCE) { cuda_emulator::barrier(false, source); }
inline int __syncthreads_count(int predicate, CUDA_EMULATOR_SOURCE) {
  return cuda_emulator::barrier(predicate != 0, source).count;
}
inline int __syncthreads_or(int predicate, CUDA_EMULATOR_SOURCE) {
  return cuda_emulator::barrier(predicate != 0, source).any;
}
inline int __syncthreads_and(int predicate, CUDA_EMULATOR_SOURCE) {
  return cuda_emulator::barrier(predicate != 0, source).all;
}

inline void __threadfence() { cuda_emulator::fence(); }
inline void __threadfence_block() { cuda_emulator::fence(); }

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATOR_SOURCE) {
  cuda_emulator::collective(cuda_emulator::Collective::kSyncWarp, mask, 0, 0, 32, source);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_EMULATOR_SOURCE) {
  return cuda_emulator::warp_collective(cuda_emulator::Collective::kShuffle, mask, value, lane, width, source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SOURCE) {
  return cuda_emulator::warp_collective(cuda_emulator::Collective::kShuffleUp, mask, value, static_cast<int>(delta),
                                        width, source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_SOURCE) {
  return cuda_emulator::warp_collective(cuda_emulator::Collective::kShuffleDown, mask, value, static_cast<int>(delta),
                                        width, source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_EMULATOR_SOURCE) {
  return cuda_emulator::warp_collective(cuda_emulator::Collective::kShuffleXor, mask, value, lanes, width, source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_SOURCE) {
  return static_cast<unsigned>(
      cuda_emulator::collective(cuda_emulator::Collective::kBallot, mask, predicate != 0, 0, 32, source));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_SOURCE) {
  return static_cast<int>(
      cuda_emulator::collective(cuda_emulator::Collective::kAny, mask, predicate != 0, 0, 32, source));
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_SOURCE) {
  return static_cast<int>(
      cuda_emulator::collective(cuda_emulator::Collective::kAll, mask, predicate != 0, 0, 32, source));
}

template <class T>
T atomicAdd(T* p, std::common_type_t<T> value) {
  return cuda_emulator::atomic(p, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMin(T* p, std::common_type_t<T> value) {
  return cuda_emulator::atomic(p, [=](T old) { return std::min<T>(old, value); });
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> value) {
  return cuda_emulator::atomic(p, [=](T old) { return std::max<T>(old, value); });
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
