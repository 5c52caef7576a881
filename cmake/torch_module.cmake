# lineavae_add_module(target SOURCES... TORCH_SOURCES...): a Python module on torch's stable ABI.
#
# torch is found by torch_probe.py, only for its headers and libraries. find_package(Torch) is not used: with a CUDA
# torch it demands the whole toolkit and rewrites the architectures.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/torch_probe.py"
  OUTPUT_VARIABLE torch_probe RESULT_VARIABLE torch_probe_result)
if(NOT torch_probe_result EQUAL 0)
  message(FATAL_ERROR "torch was not found in the environment that lineavae is installed into. Install it there first: "
    "pip install 'torch>=2.10'. If it is there, the isolated build does not see it: activate the environment, or "
    "pip install scikit-build-core pybind11 cmake ninja, then pip install --no-build-isolation . "
    "(with uv, uv pip install for both)")
endif()
list(GET torch_probe 0 LINEAVAE_TORCH_VERSION)
list(GET torch_probe 1 torch_root)
list(GET torch_probe 2 torch_cuda)
if(LINEAVAE_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "torch ${LINEAVAE_TORCH_VERSION}, in ${torch_root}, is too old. "
    "Upgrade it: pip install --upgrade 'torch>=2.10'")
endif()

# A machine without network may have no pybind11 package; torch carries its headers.
find_package(pybind11 CONFIG QUIET)
if(NOT pybind11_FOUND)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_package(pybind11 CONFIG QUIET)
endif()

function(lineavae_add_module target)
  cmake_parse_arguments(PARSE_ARGV 1 module "" "" "SOURCES;TORCH_SOURCES")
  Python_add_library(${target} MODULE WITH_SOABI ${module_SOURCES} ${module_TORCH_SOURCES})
  target_compile_features(${target} PRIVATE cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(${target} SYSTEM PRIVATE "${torch_root}/include")
  if(pybind11_FOUND)
    target_include_directories(${target} BEFORE PRIVATE ${pybind11_INCLUDE_DIRS})
  endif()
  target_link_libraries(${target} PRIVATE
    -Wl,--no-as-needed "${torch_root}/lib/libtorch.so" "${torch_root}/lib/libtorch_cpu.so" -Wl,--as-needed)
  # The stable ABI of torch 2.10, so that one binary loads in every later torch. Only where torch's headers are
  # included: the pybind11 headers that older torch versions carry refuse to compile under it.
  set_source_files_properties(${module_TORCH_SOURCES} PROPERTIES
    COMPILE_DEFINITIONS TORCH_TARGET_VERSION=0x020a000000000000)
endfunction()
