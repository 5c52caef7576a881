// torch's stable ABI, as far as it is used here. A call into torch that fails raises torch's own words, "can't allocate
// memory: you tried to allocate ... bytes" for one. The macro that raises in torch's headers names only the call, so it
// is another one here, before they are included.
#pragma once

#include <torch/headeronly/util/shim_utils.h>

#include <stdexcept>
#include <string>

// torch has this function from 2.13 on: weak, so that one binary loads into those before it too.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace lineavae {

// `call` is the source text, torch_call_dispatcher("aten::new_empty", ...) for most.
[[noreturn]] __attribute__((noinline)) inline void throw_error_of_torch(const std::string& call) {
  if (torch_exception_get_what_without_backtrace != nullptr) {
    throw std::runtime_error(torch_exception_get_what_without_backtrace());
  }
  throw std::runtime_error("torch failed, for the reason that it wrote to stderr, in " +
                           call.substr(0, call.find(',')) + ", ...)");
}

}  // namespace lineavae

#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)       \
  if ((call) != TORCH_SUCCESS) {           \
    lineavae::throw_error_of_torch(#call); \
  }

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
