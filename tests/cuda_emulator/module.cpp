// The Python module _C_emulated: the operators on CPU tensors, computed by the CUDA kernels on the emulator.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C_emulated, module) { module.doc() = "The CUDA operators of lineavae, emulated on the CPU."; }
