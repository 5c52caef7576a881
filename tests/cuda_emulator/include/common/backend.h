// The emulator's version of csrc/common/backend.h: the CUDA implementation of every op, on CPU tensors.
#pragma once

#include "common/device.h"
#include "common/tensor.h"

namespace lineavae {

using Library = torch::stable::detail::StableLibrary;

template <class Device>
class Backend;

template <>
class Backend<Cuda> {
 public:
  explicit Backend(const Tensor&) {}
  Cuda device() const { return {nullptr}; }
};

}  // namespace lineavae

#define LINEAVAE_IMPLEMENT(implement) \
  STABLE_TORCH_LIBRARY_IMPL(lineavae, CPU, library) { lineavae::implement<lineavae::Cuda>(library); }
