// Programs that must fail: each kernel has one bug, `PROGRAM NAME` runs it, and CMakeLists.txt says which build finds
// it and by what words. `PROGRAM NAME fixed` runs the same kernel without the bug, in which no build may find anything.
#include <cstring>
#include <iostream>

#include "kernels/harness.h"

namespace lineavae::test {
namespace {

using namespace cuda;

constexpr int kBlocks = 3, kBlock = 64;

std::vector<double> counting(int size) {
  std::vector<double> values(size);
  for (int i = 0; i < size; ++i) values[i] = i % 13;
  return values;
}

template <bool kBug>
__global__ void missing_barrier(const float* in, float* out) {
  LINEAVAE_SHARED(partial, float[kBlock / kWarp]);
  const float sum = warp_sum(in[threadIdx.x]);
  if (lane() == 0) partial[threadIdx.x / kWarp] = sum;
  if (!kBug) __syncthreads();
  if (threadIdx.x == kBlock / 2 - 1) *out = partial[0] + partial[1];
}

template <bool kBug>
__global__ void dropped_second_barrier(const float* in, float* out) {
  LINEAVAE_SHARED(buffer, float[kBlock]);
  for (int step = 0; step < 3; ++step) {
    buffer[threadIdx.x] = in[step * kBlock + threadIdx.x];
    __syncthreads();
    out[step * kBlock + threadIdx.x] = buffer[(threadIdx.x + 1) % kBlock];
    if (!kBug) __syncthreads();  // or the next step overwrites what others have still to read
  }
}

template <bool kBug>
__global__ void add_without_atomic(const uint32_t* in, uint32_t* out) {
  if (threadIdx.x != 0) return;
  if (kBug) {
    *out += in[blockIdx.x];
  } else {
    atomicAdd(out, in[blockIdx.x]);
  }
}

template <bool kBefore, bool kAfter>
__global__ void fences(const uint32_t* in, uint32_t* of_block, uint32_t* num_done, uint32_t* total) {
  if (threadIdx.x != 0) return;
  of_block[blockIdx.x] = in[blockIdx.x];
  if (kBefore) __threadfence();
  const bool is_last = atomicAdd(num_done, 1u) == gridDim.x - 1;
  if (kAfter) __threadfence();
  if (!is_last) return;
  uint32_t sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += of_block[block];
  *total = sum;
}

template <bool kBug>
__global__ void shuffle_as_fence(const float* in, float* out) {
  LINEAVAE_SHARED(buffer, float[kWarp]);
  const float value = in[threadIdx.x];
  buffer[threadIdx.x] = value;
  if (kBug) {
    __shfl_xor_sync(kFullMask, value, 1);  // lanes meet, but no memory is ordered
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = buffer[kWarp - 1 - threadIdx.x];
}

template <bool kBug>
__global__ void shared_out_of_bounds(const float* in, float* out) {
  LINEAVAE_DYNAMIC_SHARED(float, buffer);  // kBlock floats
  buffer[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = buffer[kBug ? threadIdx.x + 1 : (threadIdx.x + 1) % kBlock];
}

template <bool kBug>
__global__ void misaligned_load(const float* in, float* out) {
  store_vector(out + 4 * threadIdx.x, load_vector<4>(in + 4 * threadIdx.x + kBug));
}

template <bool kBug>
__global__ void divergent_barrier(const float* in, float* out) {
  if (kBug && threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

template <bool kBug>
__global__ void early_exit(const float* in, float* out) {
  if (kBug && threadIdx.x >= 50) return;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

template <bool kBug>
__global__ void absent_lanes(const float* in, float* out) {
  if (kBug && threadIdx.x % kWarp >= 16) return;
  out[threadIdx.x] = __shfl_down_sync(kFullMask, in[threadIdx.x], 1);
}

template <bool kBug>
__global__ void divergent_collectives(const float* in, float* out) {
  if (kBug && lane() < 16) {
    out[threadIdx.x] = __shfl_xor_sync(kFullMask, in[threadIdx.x], 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(kFullMask, in[threadIdx.x], 1);
  }
}

template <bool kBug>
__global__ void deadlock(const float* in, float* out) {
  // the first warp waits for its other half, which waits for the block
  if (!kBug || threadIdx.x >= 16) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(kFullMask, in[threadIdx.x], 1);
}

std::vector<double> permuted(const std::vector<double>& values, int (*source)(int)) {
  std::vector<double> out(values.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = values[source(static_cast<int>(i))];
  return out;
}

// A kernel that reads one array of floats and writes another.
using Kernel = void (*)(const float*, float*);
void expect(Kernel kernel, int threads, const std::vector<double>& values, const std::vector<double>& expected,
            size_t shared_bytes = 0) {
  Case c("seeded bug");
  const float* in = c.input<float>("in", values);
  float* out = c.output<float>("out", expected.size());
  c.run([&] { launch(kernel, dim3(1), dim3(threads), shared_bytes, Cuda{}, in, out); });
  c.expect(out, expected);
}

template <bool kBug>
bool run(const std::string& name) {
  const auto same = [](int i) { return i; };
  const auto neighbour = [](int i) { return i ^ 1; };
  const auto next = [](int i) { return i / kBlock * kBlock + (i + 1) % kBlock; };
  const auto values = counting(kBlock);
  if (name == "missing_barrier") {
    double sum = 0;
    for (const double value : values) sum += value;
    expect(&missing_barrier<kBug>, kBlock, values, {sum});
  } else if (name == "dropped_second_barrier") {
    expect(&dropped_second_barrier<kBug>, kBlock, counting(3 * kBlock), permuted(counting(3 * kBlock), next));
  } else if (name == "add_without_atomic") {
    Case c(name);
    const uint32_t* in = c.input<uint32_t>("in", {1, 2, 4});
    uint32_t* out = c.in_out<uint32_t>("out", {0});
    c.run([&] { launch(&add_without_atomic<kBug>, dim3(kBlocks), dim3(kBlock), Cuda{}, in, out); });
    c.expect(out, {7}, 0);
  } else if (name == "missing_fence_before" || name == "missing_fence_after") {
    constexpr bool kFixed = !kBug;
    const auto kernel = name == "missing_fence_before" ? &fences<kFixed, true> : &fences<true, kFixed>;
    Case c(name);
    const uint32_t* in = c.input<uint32_t>("in", {1, 2, 4});
    uint32_t *of_block = c.output<uint32_t>("of_block", kBlocks), *total = c.output<uint32_t>("total", 1);
    uint32_t* num_done = c.in_out<uint32_t>("num_done", {0});
    c.run([&] { launch(kernel, dim3(kBlocks), dim3(kBlock), Cuda{}, in, of_block, num_done, total); });
    c.expect(total, {7}, 0);
  } else if (name == "shuffle_as_fence") {
    expect(&shuffle_as_fence<kBug>, kWarp, counting(kWarp),
           permuted(counting(kWarp), [](int i) { return kWarp - 1 - i; }));
  } else if (name == "shared_out_of_bounds") {
    expect(&shared_out_of_bounds<kBug>, kBlock, values, permuted(values, next), kBlock * sizeof(float));
  } else if (name == "misaligned_load") {
    const auto four_more = counting(4 * kWarp + 4);
    expect(&misaligned_load<kBug>, kWarp, four_more, {four_more.begin() + kBug, four_more.begin() + kBug + 4 * kWarp});
  } else if (name == "divergent_barrier") {
    expect(&divergent_barrier<kBug>, kBlock, values, permuted(values, same));
  } else if (name == "early_exit") {
    expect(&early_exit<kBug>, kBlock, values, permuted(values, same));
  } else if (name == "absent_lanes") {
    expect(&absent_lanes<kBug>, kBlock, values,
           permuted(values, [](int i) { return i % kWarp == kWarp - 1 ? i : i + 1; }));
  } else if (name == "divergent_collectives") {
    expect(&divergent_collectives<kBug>, kBlock, values, permuted(values, neighbour));
  } else if (name == "deadlock") {
    expect(&deadlock<kBug>, kBlock, values, permuted(values, neighbour));
  } else if (name == "impossible_launch") {
    expect(&early_exit<false>, kBug ? 2048 : kBlock, values, permuted(values, same));
  } else {
    return false;
  }
  return true;
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) {
  static std::string name;
  name = argc > 1 ? argv[1] : "";
  static const bool fixed = argc == 3 && std::strcmp(argv[2], "fixed") == 0;
  return lineavae::test::run_program(1, argv, [] {
    using lineavae::test::run;
    if (!(fixed ? run<false>(name) : run<true>(name))) std::cerr << "FAILED: no bug is named " << name << '\n';
  });
}
