// Where a kernel runs. Every kernel is a template over the dtype of its arguments and nothing else, declared once with
// the device as its first argument and defined twice: for Cpu in ops/cpu/, for Cuda in ops/cuda/.
#pragma once

namespace lineavae {

struct Cpu {};

struct Cuda {
  void* stream;  // a cudaStream_t, so that no CUDA header is needed to pass it on
};

}  // namespace lineavae

// Declares the kernel `name` for both devices.
#define LINEAVAE_KERNEL(name, Arguments) \
  template <class T>                     \
  void name(Cpu, const Arguments<T>&);   \
  template <class T>                     \
  void name(Cuda, const Arguments<T>&);

// F(T, ...) for each dtype: those that products exist in, and all.
#define LINEAVAE_FLOATING(F, ...) F(float, __VA_ARGS__) F(double, __VA_ARGS__)
#define LINEAVAE_ALL_FLOATING(F, ...) LINEAVAE_FLOATING(F, __VA_ARGS__) F(Float16, __VA_ARGS__) F(BFloat16, __VA_ARGS__)

// The code of a kernel for one device and dtype.
#define LINEAVAE_INSTANTIATE(T, Device, name, Arguments) template void name(Device, const Arguments<T>&);
