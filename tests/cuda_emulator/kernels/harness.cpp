#include "harness.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>

#include "memory_trace.h"

namespace lineavae::test {
namespace {

int num_cases = 0, num_failures = 0;
std::ofstream record;

// ---- memory and schedules of a device ----

#ifdef __CUDACC__

constexpr int kRuns = 2;
void prepare_run(int) {}

void* allocate(size_t bytes) {
  void* pointer;
  cuda::check(cudaMalloc(&pointer, bytes ? bytes : 1));
  return pointer;
}
void release(void* pointer) { cuda::check(cudaFree(pointer)); }
void to_device(void* device, const void* host, size_t bytes) {
  cuda::check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}
void to_host(void* host, const void* device, size_t bytes) {
  cuda::check(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}

#else

constexpr int kRuns = kTraceMemory ? 1 : std::size(cuda_emulator::kOrders);
void prepare_run(int run) { cuda_emulator::set_order(cuda_emulator::kOrders[run]); }

// Of the exact size, so that the address sanitizer sees the first byte past the end; aligned as cudaMalloc does.
void* allocate(size_t bytes) {
  void* pointer;
  if (posix_memalign(&pointer, 256, bytes ? bytes : 1) != 0) std::abort();
  return pointer;
}
void release(void* pointer) { std::free(pointer); }
void to_device(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
void to_host(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }

#endif

}  // namespace

template <class T>
std::vector<double> normal(size_t size, double scale, double shift) {
  static std::mt19937_64 generator(1);
  std::normal_distribution<double> distribution;
  std::vector<double> values(size);
  for (double& value : values) value = to_double(from_double<T>(shift + scale * distribution(generator)));
  return values;
}
template std::vector<double> normal<float>(size_t, double, double);
template std::vector<double> normal<double>(size_t, double, double);
template std::vector<double> normal<Float16>(size_t, double, double);
template std::vector<double> normal<BFloat16>(size_t, double, double);

struct Case::Array {
  const char* name;
  const char* dtype;
  std::vector<unsigned char> initial;
  size_t offset;
  bool constant;
  unsigned char* memory;

  unsigned char* data() const { return memory + offset; }
  std::vector<unsigned char> bytes() const {
    std::vector<unsigned char> bytes(initial.size());
    if (!bytes.empty()) to_host(bytes.data(), data(), bytes.size());
    return bytes;
  }
};

Case::Case(std::string name) : name_(std::move(name)) { ++num_cases; }

Case::~Case() {
  for (const Array& array : arrays_) release(array.memory);
}

void Case::fail(const std::string& message) const {
  ++num_failures;
  std::cerr << "FAILED " << name_ << ": " << message << '\n';
}

void* Case::add(const char* name, const char* dtype, std::vector<unsigned char> bytes, size_t offset, bool constant) {
  auto* const memory = static_cast<unsigned char*>(allocate(offset + bytes.size()));
  arrays_.push_back({name, dtype, std::move(bytes), offset, constant, memory});
  return arrays_.back().data();
}

const Case::Array& Case::array_at(const void* pointer) const {
  for (const Array& array : arrays_) {
    if (array.data() == pointer) return array;
  }
  std::abort();
}

std::vector<unsigned char> Case::read(const void* pointer) const { return array_at(pointer).bytes(); }

void Case::run(const std::function<void()>& kernel) {
  std::vector<std::vector<unsigned char>> first;
  if constexpr (kTraceMemory) memory_trace::take();  // and forget those of the last case
  for (int run = 0; run < kRuns; ++run) {
    for (const Array& array : arrays_) {
      if (!array.initial.empty()) to_device(array.data(), array.initial.data(), array.initial.size());
      if constexpr (kTraceMemory) memory_trace::watch(array.name, array.data(), array.initial.size());
    }
    prepare_run(run);
    try {
      kernel();
    } catch (const std::exception& error) {
      fail(error.what());
      return;
    }
    for (size_t i = 0; i < arrays_.size(); ++i) {
      const std::vector<unsigned char> bytes = arrays_[i].bytes();
      if (arrays_[i].constant && bytes != arrays_[i].initial) fail(std::string("writes its input ") + arrays_[i].name);
      if (run == 0) {
        first.push_back(bytes);
      } else if (bytes != first[i]) {
        fail(std::string(arrays_[i].name) + " depends on the schedule");
      }
    }
  }
}

void Case::compare(const void* pointer, const std::vector<double>& actual, const std::vector<double>& expected,
                   double tolerance) {
  const Array& array = array_at(pointer);
  double largest = 0;
  for (const double value : expected)
    if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  if (actual.size() != expected.size()) std::abort();
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i] || (std::isnan(actual[i]) && std::isnan(expected[i]))) continue;  // infinities, too
    if (!(std::abs(actual[i] - expected[i]) <= tolerance * largest)) {                             // NaN fails
      std::ostringstream message;
      message.precision(17);
      message << array.name << '[' << i << "] is " << actual[i] << ", expected " << expected[i] << " to " << tolerance
              << " of " << largest;
      fail(message.str());
      break;
    }
  }
  if (!record.is_open()) return;
  record << name_ << '\t' << array.name << '\t' << array.dtype << '\t' << std::hexfloat << tolerance << '\t';
  for (const double value : actual) record << value << ' ';
  record << '\n';
}

void Case::expect_few_sectors(const std::vector<const void*>& arrays) {
  if constexpr (kTraceMemory) {
    const auto is_meant = [&](const memory_trace::Access& access) {
      return arrays.empty() || std::any_of(arrays.begin(), arrays.end(),
                                           [&](const void* array) { return access.array == array_at(array).name; });
    };
    for (const memory_trace::Access& access : memory_trace::take()) {
      if (!is_meant(access) || access.sectors <= 1.1 * access.fewest_sectors) continue;
      std::ostringstream message;
      message << (access.writes ? "writes " : "reads ") << access.array << " in " << access.sectors << " sectors where "
              << access.fewest_sectors << " hold it (" << access.requests << " requests)";
      fail(message.str());
    }
  }
}

int run_program(int argc, char** argv, void (*run_all)()) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[0] == "--record") {
    record.open(arguments[1]);
  } else if (!arguments.empty()) {
    std::cerr << "usage: " << argv[0] << " [--record FILE]\n";
    return 2;
  }
  run_all();
  record.flush();
  if (record.is_open() && !record) {
    std::cerr << "FAILED to write " << arguments[1] << '\n';
    return 1;
  }
  std::cout << num_cases << " cases, " << num_failures << " failures\n";
  return num_failures > 0;
}

}  // namespace lineavae::test
