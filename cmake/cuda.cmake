# Enables CUDA where LINEAVAE_CUDA says so, and gives LINEAVAE_HAS_CUDA, _CUDA_VERSION and _CUDA_ARCHITECTURES.
#
# AUTO builds without CUDA only where there is no nvcc and nobody asks for one. An nvcc that does not work stops the
# build in its own words: check_language would swallow them, and leave a build for the CPU alone.
set(LINEAVAE_CUDA "AUTO" CACHE STRING "Build the CUDA kernels: AUTO (when nvcc is found), ON or OFF")
set(LINEAVAE_HAS_CUDA 0)
set(LINEAVAE_CUDA_VERSION "")
set(LINEAVAE_CUDA_ARCHITECTURES "")
string(TOUPPER "${LINEAVAE_CUDA}" LINEAVAE_CUDA)
if(NOT LINEAVAE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "LINEAVAE_CUDA must be AUTO, ON or OFF, got ${LINEAVAE_CUDA}")
endif()
if(LINEAVAE_CUDA STREQUAL "OFF")
  return()
endif()

# The environment comes before what an earlier configuration of this folder found.
if(NOT "$ENV{CUDACXX}" STREQUAL "")
  unset(CMAKE_CUDA_COMPILER CACHE)
  set(nvcc "$ENV{CUDACXX}")
else()
  if(NOT EXISTS "${CMAKE_CUDA_COMPILER}")
    unset(CMAKE_CUDA_COMPILER CACHE)
    find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  endif()
  set(nvcc "${CMAKE_CUDA_COMPILER}")
endif()
if(NOT nvcc)
  if(LINEAVAE_CUDA STREQUAL "ON" OR NOT "$ENV{CUDAARCHS}" STREQUAL "")
    message(FATAL_ERROR "LINEAVAE_CUDA=ON or CUDAARCHS asks for CUDA kernels, but there is no nvcc on the PATH, in "
      "CUDA_HOME or in /usr/local/cuda. Name it: CUDACXX=/opt/cuda/bin/nvcc pip install . "
      "(or build for the CPU alone: LINEAVAE_CUDA=OFF pip install .)")
  endif()
  message(STATUS "No nvcc on the PATH, in CUDA_HOME, /usr/local/cuda or CUDACXX: building the CPU kernels alone")
  return()
endif()

# Set before CUDA is enabled, which would otherwise choose its own default, and as a normal variable, so that a build
# folder that is used again follows the environment.
set(architecture "([0-9]+[af]?(-real|-virtual)?|all|all-major|native)")
if(NOT "$ENV{CUDAARCHS}" STREQUAL "")
  set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
  if(NOT CMAKE_CUDA_ARCHITECTURES MATCHES "^${architecture}(;${architecture})*$")
    message(FATAL_ERROR "CUDAARCHS must be architectures as CMake writes them, 80-real;90 for sm_80 and sm_90 with "
      "PTX, or native, got ${CMAKE_CUDA_ARCHITECTURES}")
  endif()
elseif(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "75-real;80-real;90-real;90-virtual")
  set(default_architectures ON)
endif()

message(STATUS "Building the CUDA kernels with ${nvcc}. If it refuses: CUDACXX names another nvcc, CUDAHOSTCXX another "
  "g++, CUDAARCHS other architectures; LINEAVAE_CUDA=OFF builds for the CPU alone")
enable_language(CUDA)
if(default_architectures AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND CMAKE_CUDA_ARCHITECTURES 100-real 120-real 120-virtual)
endif()
foreach(name IN ITEMS native all all-major)  # what is recorded shall say which devices they serve
  string(TOUPPER "CMAKE_CUDA_ARCHITECTURES_${name}" named)
  string(REPLACE "-" "_" named "${named}")
  if(CMAKE_CUDA_ARCHITECTURES STREQUAL name AND ${named})
    set(CMAKE_CUDA_ARCHITECTURES "${${named}}")
  endif()
endforeach()
string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
if(NOT torch_cuda STREQUAL "none" AND nvcc_major GREATER torch_cuda)
  message(WARNING "nvcc ${CMAKE_CUDA_COMPILER_VERSION} makes kernels for drivers of its own CUDA or later, and torch "
    "${LINEAVAE_TORCH_VERSION} runs on those of CUDA ${torch_cuda} too. Where the driver is as old as that, name "
    "another nvcc: CUDACXX=/usr/local/cuda-${torch_cuda}/bin/nvcc pip install .")
endif()
set(LINEAVAE_HAS_CUDA 1)
set(LINEAVAE_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
list(JOIN CMAKE_CUDA_ARCHITECTURES " " LINEAVAE_CUDA_ARCHITECTURES)
