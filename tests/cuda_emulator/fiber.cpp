#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "the switch between fibers is written for x86-64"
#endif

namespace cuda_emulator {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackSize = 256 << 10;
#else
constexpr size_t kStackSize = 64 << 10;
#endif
constexpr size_t kGuardSize = 4096;

// Saves the registers a call preserves and the stack pointer, and restores those of the other side.
__attribute__((naked, noinline)) void switch_stack(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
constexpr int kSavedRegisters = 6;

// New pages; mapping over old ones makes the race detector forget what it knows of them.
char* map_stack(char* at) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0);
  void* pages = mmap(at, kGuardSize + kStackSize, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (pages == MAP_FAILED) throw std::runtime_error("cuda_emulator: out of memory for stacks");
  mprotect(pages, kGuardSize, PROT_NONE);
  return static_cast<char*>(pages);
}

}  // namespace

void adopt_caller([[maybe_unused]] Fiber& main) {
#ifdef __SANITIZE_ADDRESS__
  pthread_attr_t attributes;
  void* stack;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &main.stack_size);
  pthread_attr_destroy(&attributes);
  main.stack = static_cast<char*>(stack);
#endif
#ifdef CUDA_EMULATOR_FIND_RACES
  main.detector_thread = __tsan_get_current_fiber();
#endif
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool from_is_done) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(from_is_done ? nullptr : &from.fake_stack, to.stack, to.stack_size);
#endif
#ifdef CUDA_EMULATOR_FIND_RACES
  __tsan_switch_to_fiber(to.detector_thread, __tsan_switch_to_fiber_no_sync);
#endif
  switch_stack(&from.stack_pointer, to.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void entered_fiber() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void FiberPool::begin_block() {
  if (!kFindRaces) return;
  for (Fiber& fiber : all_) map_stack(fiber.stack - kGuardSize);
  free_all();
}

void FiberPool::free_all() {
  free_.clear();
  for (Fiber& fiber : all_) free_.push_back(&fiber);
}

void FiberPool::end_launch() {
  free_all();
#ifdef CUDA_EMULATOR_FIND_RACES
  // not before: the detector would give the identity of a thread of one block to a thread of the next
  for (void* thread : detector_threads_) __tsan_destroy_fiber(thread);
  detector_threads_.clear();
#endif
}

Fiber* FiberPool::take() {
  const HiddenFromDetector hidden;
  if (free_.empty()) {
    Fiber& fiber = all_.emplace_back();
    fiber.stack = map_stack(nullptr) + kGuardSize;
    fiber.stack_size = kStackSize;
    free_.push_back(&fiber);
  }
  Fiber* fiber = free_.back();
  free_.pop_back();
  start(*fiber);
  return fiber;
}

void FiberPool::start(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_size);
  fiber.fake_stack = nullptr;
#endif
#ifdef CUDA_EMULATOR_FIND_RACES
  fiber.detector_thread = __tsan_create_fiber(0);
  detector_threads_.push_back(fiber.detector_thread);
#endif
  // The first switch returns into entry_, with the stack as a call leaves it: 8 past a multiple of 16. Tops of stacks
  // are spread, or all of them would compete for the same cache lines.
  const size_t colour = reinterpret_cast<uintptr_t>(fiber.stack) / kStackSize * 192 % 8192;
  void** top = reinterpret_cast<void**>(fiber.stack + kStackSize - colour) - 2;
  *top = reinterpret_cast<void*>(entry_);
  fiber.stack_pointer = top - kSavedRegisters;
}

}  // namespace cuda_emulator
