// Fibers: stacks that one OS thread switches between, known to the sanitizers. Compiled without -fsanitize=thread in
// every build; where the kernels are compiled with it, CUDA_EMULATOR_FIND_RACES makes each fiber a thread of its own in
// the eyes of the race detector.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#ifdef CUDA_EMULATOR_FIND_RACES
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace cuda_emulator {

#ifdef CUDA_EMULATOR_FIND_RACES
constexpr bool kFindRaces = true;
// What is done before release is known to whoever acquires after it, through the same object.
inline void release(void* object) { __tsan_release(object); }
inline void acquire(void* object) { __tsan_acquire(object); }
// The emulator's own accesses, also those of malloc and memcpy on its behalf, are none of the kernel's.
struct HiddenFromDetector {
  HiddenFromDetector() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~HiddenFromDetector() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
};
#else
constexpr bool kFindRaces = false;
inline void release(void*) {}
inline void acquire(void*) {}
struct HiddenFromDetector {
  HiddenFromDetector() {}
};
#endif

struct Fiber {
  void* stack_pointer = nullptr;  // while it is switched away from
  char* stack = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;  // of the address sanitizer
  void* detector_thread = nullptr;
};

// Makes `main` stand for the OS thread that calls.
void adopt_caller(Fiber& main);

// Switches to `to`. A fiber that is done never runs again from here; `start` gives it a new life.
void switch_fiber(Fiber& from, Fiber& to, bool from_is_done = false);

// To be called first by the function that a fiber runs.
void entered_fiber();

// The fibers of a block, one for each of its threads that has begun and not ended.
class FiberPool {
 public:
  // `entry` is what each fiber runs; it must end by switching away.
  explicit FiberPool(void (*entry)()) : entry_(entry) {}
  FiberPool(const FiberPool&) = delete;

  // With the race detector everything about a block's fibers is new, stacks and identities, because whatever two blocks
  // share would order them. Otherwise fibers are used again.
  void begin_block();
  void end_launch();

  Fiber* take();
  void give_back(Fiber* fiber) { free_.push_back(fiber); }

 private:
  void free_all();
  void start(Fiber& fiber);

  void (*entry_)();
  std::deque<Fiber> all_;
  std::vector<Fiber*> free_;
  std::vector<void*> detector_threads_;
};

}  // namespace cuda_emulator
