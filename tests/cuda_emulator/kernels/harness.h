// What the test of a kernel is made of: arrays on the device, the kernel run in every schedule, and expectations in
// double. The same source is built with g++ for the emulator and with nvcc for a GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "common/cuda.cuh"
#include "common/half.h"

namespace lineavae::test {

// Races are looked for in few threads, since each costs the detector half a millisecond.
#if defined(__SANITIZE_THREAD__) && !defined(LINEAVAE_TRACE_MEMORY)
constexpr bool kFewThreads = true;
#else
constexpr bool kFewThreads = false;
#endif

// Whether this build counts the memory sectors that each access touches.
#ifdef LINEAVAE_TRACE_MEMORY
constexpr bool kTraceMemory = true;
#else
constexpr bool kTraceMemory = false;
#endif

template <class T>
struct Scalar;
template <>
struct Scalar<float> {
  static constexpr const char* kName = "float32";
};
template <>
struct Scalar<double> {
  static constexpr const char* kName = "float64";
};
template <>
struct Scalar<Float16> {
  static constexpr const char* kName = "float16";
};
template <>
struct Scalar<BFloat16> {
  static constexpr const char* kName = "bfloat16";
};
template <>
struct Scalar<uint32_t> {
  static constexpr const char* kName = "uint32";
};
template <>
struct Scalar<bool> {
  static constexpr const char* kName = "bool";
};
template <>
struct Scalar<int64_t> {
  static constexpr const char* kName = "int64";
};

template <class T>
T from_double(double value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<T>(value);
  } else {
    T out;
    store(static_cast<float>(value), out);
    return out;
  }
}

template <class T>
double to_double(T value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<double>(value);
  } else {
    return load(value);
  }
}

// What results in T may be off by, relative to the largest.
template <class T>
constexpr double kTolerance = std::is_same_v<T, double>     ? 1e-13
                              : std::is_same_v<T, Float16>  ? 1e-3
                              : std::is_same_v<T, BFloat16> ? 8e-3
                                                            : 1e-6;

// Standard normal numbers that T represents.
template <class T>
std::vector<double> normal(size_t size, double scale = 1.0, double shift = 0.0);

// As T has them: infinite where they do not fit.
template <class T, class Value>
std::vector<double> rounded(const std::vector<Value>& values) {
  std::vector<double> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = to_double(from_double<T>(static_cast<double>(values[i])));
  return out;
}

inline std::vector<double> magnitudes(std::vector<double> values) {
  for (double& value : values) value = value < 0 ? -value : value;
  return values;
}

// Every other one 0, where `zeros`.
inline std::vector<double> some_zeros(std::vector<double> values, bool zeros) {
  for (size_t i = 0; zeros && i < values.size(); i += 2) values[i] = 0;
  return values;
}

// One call of a kernel. Arrays live as long as the case.
class Case {
 public:
  explicit Case(std::string name);
  ~Case();
  Case(const Case&) = delete;

  // An array that the kernel must leave as it is; `offset` elements stand before it, so that it can be misaligned.
  template <class T>
  const T* input(const char* name, const std::vector<double>& values, size_t offset = 0) {
    return static_cast<const T*>(add(name, Scalar<T>::kName, bytes_of<T>(values), offset * sizeof(T), true));
  }
  // An array that the kernel reads and writes.
  template <class T>
  T* in_out(const char* name, const std::vector<double>& values) {
    return static_cast<T*>(add(name, Scalar<T>::kName, bytes_of<T>(values), 0, false));
  }
  // An array that the kernel writes, full of NaNs before.
  template <class T>
  T* output(const char* name, size_t size, size_t offset = 0) {
    return static_cast<T*>(
        add(name, Scalar<T>::kName, std::vector<unsigned char>(size * sizeof(T), 0xff), offset * sizeof(T), false));
  }

  // In every schedule (on a GPU twice); the results must be the same to the last bit.
  void run(const std::function<void()>& kernel);

  // Every element is within `tolerance` times the largest expected magnitude.
  template <class T>
  void expect(const T* array, const std::vector<double>& expected, double tolerance = kTolerance<T>) {
    const std::vector<unsigned char> bytes = read(array);
    std::vector<double> actual(bytes.size() / sizeof(T));
    for (size_t i = 0; i < actual.size(); ++i) {
      T value;
      std::memcpy(&value, &bytes[i * sizeof(T)], sizeof value);
      actual[i] = to_double(value);
    }
    compare(array, actual, expected, tolerance);
  }

  // In the build that traces memory: each access by a warp touches at most 1.1 times the sectors of 32 bytes that hold
  // what it reads or writes. Of these arrays, or of all. No list in braces: nvcc 13.0 breaks it in a template.
  template <class... Values>
  void expect_coalesced(const Values*... arrays) {
    expect_few_sectors(std::vector<const void*>{arrays...});
  }

 private:
  struct Array;
  template <class T>
  static std::vector<unsigned char> bytes_of(const std::vector<double>& values) {
    std::vector<unsigned char> bytes(values.size() * sizeof(T));
    for (size_t i = 0; i < values.size(); ++i) {
      const T value = from_double<T>(values[i]);
      std::memcpy(&bytes[i * sizeof(T)], &value, sizeof value);
    }
    return bytes;
  }
  void* add(const char* name, const char* dtype, std::vector<unsigned char> bytes, size_t offset, bool constant);
  std::vector<unsigned char> read(const void* array) const;
  void expect_few_sectors(const std::vector<const void*>& arrays);
  void compare(const void* array, const std::vector<double>& actual, const std::vector<double>& expected,
               double tolerance);
  const Array& array_at(const void* pointer) const;
  void fail(const std::string& message) const;

  std::string name_;
  std::vector<Array> arrays_;
};

// The main function of a program: `PROGRAM [--record FILE]` runs all cases and prints the failures; the record has a
// line per expectation, with case, array, dtype, and the values in hexadecimal. Returns the exit status.
int run_program(int argc, char** argv, void (*run_all)());

}  // namespace lineavae::test
