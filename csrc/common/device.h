// Where a kernel runs. Every kernel is one template, declared once per op with the device as its first argument and
// defined twice: for Cpu in ops/cpu/, for Cuda in ops/cuda/.
#pragma once

namespace lineavae {

struct Cpu {};

struct Cuda {
  void* stream;  // a cudaStream_t, so that no CUDA header is needed to pass it on
};

}  // namespace lineavae
