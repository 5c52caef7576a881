// From a tensor's device to the tag that kernels take: the current stream of a CUDA tensor, nothing for the CPU.
#pragma once

#include "build_config.h"
#include "common/device.h"
#include "common/tensor.h"
#include "common/torch.h"

// torch with CUDA has this function, torch for the CPU alone has not: weak, so that one binary loads into both.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace lineavae {

using Library = torch::stable::detail::StableLibrary;

template <class Device>
class Backend;

template <>
class Backend<Cpu> {
 public:
  explicit Backend(const Tensor&) {}
  Cpu device() const { return {}; }
};

// Makes the tensor's device the current one for its lifetime.
template <>
class Backend<Cuda> {
 public:
  explicit Backend(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "lineavae: this torch was built without CUDA");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &device_.stream));
  }
  Cuda device() const { return device_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Cuda device_{nullptr};
};

}  // namespace lineavae

// Registers the implementations of an op's file, given by `template <class Device> void implement(Library&)` in
// namespace lineavae, for every device that this build has kernels for.
#if LINEAVAE_HAS_CUDA
#define LINEAVAE_IMPLEMENT(implement)                                                                \
  STABLE_TORCH_LIBRARY_IMPL(lineavae, CPU, library) { lineavae::implement<lineavae::Cpu>(library); } \
  STABLE_TORCH_LIBRARY_IMPL(lineavae, CUDA, library) { lineavae::implement<lineavae::Cuda>(library); }
#else
#define LINEAVAE_IMPLEMENT(implement) \
  STABLE_TORCH_LIBRARY_IMPL(lineavae, CPU, library) { lineavae::implement<lineavae::Cpu>(library); }
#endif
