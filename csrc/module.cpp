// The Python module itself. Importing it registers the operators, which live in ops/; no torch header here.
#include <pybind11/pybind11.h>

#include "build_config.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native operators of lineavae, registered under torch.ops.lineavae.";
  module.def(
      "build_info",
      [] {
        py::dict info;
        info["torch"] = LINEAVAE_TORCH_VERSION;
        info["compiler"] = LINEAVAE_COMPILER;
        info["cuda"] = LINEAVAE_CUDA_VERSION;
        info["cuda_architectures"] = LINEAVAE_CUDA_ARCHITECTURES;
        return info;
      },
      "What the module was built with; the CUDA fields are empty in a build for the CPU alone.");
}
