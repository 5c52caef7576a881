// What every CPU kernel needs: one clone of it per instruction set, and torch's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/device.h"
#include "common/torch.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

// One binary, the best code for each machine. Levels of the instruction set, never CPU models: those match the model's
// number and fall back to SSE2 on every other one. A clone cannot be a template and does not reach into a lambda, so a
// kernel is an always-inline template body with one clone per dtype around it. LINEAVAE_WITHOUT_CLONES leaves all code
// at the level of the compiler's flags, for tests of another level than the machine's highest.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    !defined(LINEAVAE_WITHOUT_CLONES)
#define LINEAVAE_HAS_CLONES
#define LINEAVAE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LINEAVAE_CLONES
#endif
#define LINEAVAE_INLINE inline __attribute__((always_inline))

namespace lineavae {

// Runs f(begin, end) over [0, count) on torch's threads; `cost` is the number of elements behind one index.
template <class F>
void parallel_for(int64_t count, int64_t cost, const F& f) {
  constexpr int64_t kElementsPerTask = 1 << 14;
  if (count <= 0) return;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, cost));
#ifdef __SANITIZE_THREAD__  // which sees nothing of OpenMP: it is told what comes before all tasks, and what after
  struct Call {
    const F& f;
    char begun, ended;
  } call{f, 0, 0};
  const auto task = [](int64_t begin, int64_t end, void* argument) __attribute__((no_sanitize("thread"))) {
    Call& call = *static_cast<Call*>(argument);
    __tsan_acquire(&call.begun);
    call.f(begin, end);
    __tsan_release(&call.ended);
  };
  __tsan_release(&call.begun);
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, task, &call));
  __tsan_acquire(&call.ended);
#else
  torch::stable::parallel_for(0, count, grain, f);
#endif
}

template <class T>
LINEAVAE_INLINE T dot(const T* x, const T* y, int64_t size) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += x[i] * y[i];
  return sum;
}

// While it lives, this thread reads and writes denormal numbers as zero: each would cost a hundred cycles or more, and
// a collapsed latent has many. What is lost is smaller than the smallest normal number.
class WithoutDenormals {
 public:
#ifdef __SSE2__
  WithoutDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushToZero | kDenormalsAreZero); }
  ~WithoutDenormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  unsigned before_;
#endif
};

}  // namespace lineavae

// The clones of the always-inline template `name_body(a, begin, end)` for one dtype.
#define LINEAVAE_CLONE(T, name, Arguments)                                                      \
  LINEAVAE_CLONES static void name##_clone(const Arguments<T>& a, int64_t begin, int64_t end) { \
    name##_body(a, begin, end);                                                                 \
  }

// Defines the CPU kernel `name` for these dtypes from `name_body`, which works on the indices [begin, end) of `count`;
// `count` and `cost`, the elements behind one index, are expressions in `a`. (In parentheses where there is a `*`,
// which clang-format takes for a pointer's.)
#define LINEAVAE_CPU_KERNEL(DTYPES, name, Arguments, count, cost)                                \
  DTYPES(LINEAVAE_CLONE, name, Arguments)                                                        \
  template <class T>                                                                             \
  void name(Cpu, const Arguments<T>& a) {                                                        \
    parallel_for(count, cost, [&](int64_t begin, int64_t end) { name##_clone(a, begin, end); }); \
  }                                                                                              \
  DTYPES(LINEAVAE_INSTANTIATE, Cpu, name, Arguments)
