// The emulator's version of csrc/common/cuda_platform.cuh, which says what each word means. This folder stands before
// csrc on the include path.
#pragma once

#include <stdexcept>

#include "emulator.h"

namespace lineavae::cuda {

#define LINEAVAE_SHARED(name, ...)                                                \
  static char name##_key;                                                         \
  auto& name = *static_cast<std::common_type_t<std::add_pointer_t<__VA_ARGS__>>>( \
      ::cuda_emulator::shared(&name##_key, sizeof(__VA_ARGS__)))

#define LINEAVAE_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::cuda_emulator::dynamic_shared())

template <class... Parameters>
void start(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*, Parameters... arguments) {
  cuda_emulator::launch(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

inline void fill_with_zeros(void* p, size_t bytes, void*) { std::memset(p, 0, bytes); }

template <class V>
V load_at_once(const void* p) {
  const auto word = *static_cast<const typename cuda_emulator::Word<sizeof(V)>::type*>(p);
  V v;
  std::memcpy(&v, &word, sizeof v);
  return v;
}
template <class V>
void store_at_once(void* p, const V& v) {
  typename cuda_emulator::Word<sizeof(V)>::type word;
  std::memcpy(&word, &v, sizeof v);
  *static_cast<decltype(word)*>(p) = word;
}

}  // namespace lineavae::cuda
