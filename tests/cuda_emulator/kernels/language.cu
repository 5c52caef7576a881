// The language that the kernels are written in: what each word must do, on the emulator and on a GPU alike.
#include <cmath>

#include "common/approximate.cuh"
#include "common/philox.h"
#include "harness.h"

namespace lineavae::test {
namespace {

using namespace cuda;

constexpr int kBlock = 64;  // two warps

std::vector<double> per_thread(int blocks, double (*f)(int)) {
  std::vector<double> values(blocks * kBlock);
  for (size_t i = 0; i < values.size(); ++i) values[i] = f(static_cast<int>(i));
  return values;
}

// Runs a kernel that writes one number per thread.
void expect_per_thread(const char* name, void (*kernel)(uint32_t*), double (*expected)(int), int blocks = 2) {
  Case c(name);
  uint32_t* out = c.output<uint32_t>("out", blocks * kBlock);
  c.run([&] { launch(kernel, dim3(blocks), dim3(kBlock), Cuda{}, out); });
  c.expect(out, per_thread(blocks, expected), 0);
}

__device__ int position() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

__global__ void places(uint32_t* out) { out[position()] = blockIdx.x * 1000 + threadIdx.x + gridDim.x * 100000; }
double places_expected(int i) { return i / kBlock * 1000 + i % kBlock + 2 * 100000; }

__global__ void shuffle(uint32_t* out) { out[position()] = __shfl_sync(kFullMask, position(), 5); }
double shuffle_expected(int i) { return i / 32 * 32 + 5; }

__global__ void shuffle_of_segment(uint32_t* out) { out[position()] = __shfl_sync(kFullMask, position(), 5, 8); }
double shuffle_of_segment_expected(int i) { return i / 8 * 8 + 5; }

__global__ void shuffle_up(uint32_t* out) { out[position()] = __shfl_up_sync(kFullMask, position(), 3, 16); }
double shuffle_up_expected(int i) { return i % 16 < 3 ? i : i - 3; }

__global__ void shuffle_down(uint32_t* out) { out[position()] = __shfl_down_sync(kFullMask, position(), 3, 16); }
double shuffle_down_expected(int i) { return i % 16 >= 13 ? i : i + 3; }

__global__ void shuffle_xor(uint32_t* out) { out[position()] = __shfl_xor_sync(kFullMask, position(), 9); }
double shuffle_xor_expected(int i) { return i ^ 9; }

// Lanes 0 to 15 and 16 to 31 of a warp apart.
__global__ void shuffle_of_halves(uint32_t* out) {
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  out[position()] = __shfl_xor_sync(half, position(), 1);
}
double shuffle_of_halves_expected(int i) { return i ^ 1; }

__global__ void ballot(uint32_t* out) { out[position()] = __ballot_sync(kFullMask, threadIdx.x % 3 == 0); }
double ballot_expected(int i) {
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= (i % kBlock / 32 * 32 + lane) % 3 == 0 ? 1u << lane : 0;
  return bits;
}

__global__ void any_and_all(uint32_t* out) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int any = __any_sync(kFullMask, warp == 1 && lane == 7), all = __all_sync(kFullMask, warp == 0 || lane > 0);
  out[position()] = (any != 0) + 2 * (all != 0);
}
double any_and_all_expected(int i) {
  const int warp = i % kBlock / 32;
  return (warp == 1) + 2 * (warp == 0);
}

__global__ void barrier_votes(uint32_t* out) {
  const int count = __syncthreads_count(threadIdx.x % 5 == 0);
  const int any = __syncthreads_or(threadIdx.x == 50), all = __syncthreads_and(threadIdx.x < 60);
  out[position()] = count + 1000 * (any != 0) + 10000 * (all != 0);
}
double barrier_votes_expected(int) { return 13 + 1000; }

__global__ void shared_memory(uint32_t* out) {
  LINEAVAE_SHARED(numbers, uint32_t[kBlock]);
  numbers[threadIdx.x] = position();
  __syncthreads();
  out[position()] = numbers[kBlock - 1 - threadIdx.x];
}
double shared_memory_expected(int i) { return i / kBlock * kBlock + kBlock - 1 - i % kBlock; }

__global__ void warp_barrier(uint32_t* out) {
  LINEAVAE_SHARED(numbers, uint32_t[kBlock]);
  numbers[threadIdx.x] = position();
  __syncwarp();
  out[position()] = numbers[threadIdx.x ^ 31];
}
double warp_barrier_expected(int i) { return i ^ 31; }

__global__ void atomics_of_shared_memory(uint32_t* out) {
  LINEAVAE_SHARED(sum, uint32_t);
  LINEAVAE_SHARED(least, uint32_t);
  LINEAVAE_SHARED(largest, uint32_t);
  if (threadIdx.x == 0) sum = 0, least = 1000, largest = 0;
  __syncthreads();
  atomicAdd(&sum, threadIdx.x);
  atomicMin(&least, threadIdx.x + 3);
  atomicMax(&largest, threadIdx.x);
  __syncthreads();
  out[position()] = sum * 10 + least + largest * 1000000;
}
double atomics_of_shared_memory_expected(int) { return kBlock * (kBlock - 1) / 2 * 10 + 3 + (kBlock - 1) * 1000000.0; }

__global__ void sums(const float* in, float* warps, float* blocks) {
  LINEAVAE_SHARED(partial, float[kWarps]);
  const float value = in[thread_index()], of_warp = warp_sum(value), of_block = block_sum(value, partial);
  warps[thread_index()] = of_warp;
  blocks[thread_index()] = of_block;
}

void test_sums() {
  const size_t size = 3 * kThreads;
  const auto values = normal<float>(size);
  std::vector<double> warps(size), blocks(size);
  for (size_t i = 0; i < size; ++i)
    for (size_t j = 0; j < size; ++j) {
      if (j / kWarp == i / kWarp) warps[i] += values[j];
      if (j / kThreads == i / kThreads) blocks[i] += values[j];
    }
  Case c("warp_sum and block_sum");
  const float* in = c.input<float>("in", values);
  float *of_warp = c.output<float>("warp_sum", size), *of_block = c.output<float>("block_sum", size);
  c.run([&] { launch(&sums, dim3(3), dim3(kThreads), Cuda{}, in, of_warp, of_block); });
  c.expect(of_warp, warps);
  c.expect(of_block, blocks);
}

// Inclusive sums along dynamic shared memory.
__global__ void scan(const uint32_t* in, uint32_t* out) {
  LINEAVAE_DYNAMIC_SHARED(uint32_t, numbers);
  numbers[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (unsigned distance = 1; distance < blockDim.x; distance *= 2) {
    const uint32_t before = threadIdx.x >= distance ? numbers[threadIdx.x - distance] : 0;
    __syncthreads();
    numbers[threadIdx.x] += before;
    __syncthreads();
  }
  out[threadIdx.x] = numbers[threadIdx.x];
}

void test_dynamic_shared_memory() {
  std::vector<double> values(kBlock), sums(kBlock);
  double sum = 0;
  for (int i = 0; i < kBlock; ++i) {
    values[i] = i * 7 % 13;
    sums[i] = sum += values[i];
  }
  Case c("dynamic shared memory");
  const uint32_t* in = c.input<uint32_t>("in", values);
  uint32_t* out = c.output<uint32_t>("out", kBlock);
  c.run([&] { launch(&scan, dim3(1), dim3(kBlock), kBlock * sizeof(uint32_t), Cuda{}, in, out); });
  c.expect(out, sums, 0);
}

// The block that comes last adds what the others left.
__global__ void last_block_adds(const uint32_t* in, uint32_t* of_block, uint32_t* num_done, uint32_t* total) {
  if (threadIdx.x == 0) of_block[blockIdx.x] = in[blockIdx.x];
  if (is_last_block(num_done, gridDim.x) && threadIdx.x == kWarp - 1) {
    uint32_t sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += of_block[block];
    *total = sum;
  }
}

void test_last_block() {
  Case c("the last block");
  const uint32_t* in = c.input<uint32_t>("in", {3, 1, 4, 1, 5});
  uint32_t *of_block = c.output<uint32_t>("of_block", 5), *total = c.output<uint32_t>("total", 1);
  uint32_t* num_done = c.output<uint32_t>("num_done", 1);
  c.run([&] {
    clear(num_done, 1, Cuda{});
    launch(&last_block_adds, dim3(5), dim3(kWarp), Cuda{}, in, of_block, num_done, total);
  });
  c.expect(total, {14}, 0);
  c.expect(num_done, {5}, 0);
}

__global__ void quotients(AnyDivisor divisor, const int64_t* in, int64_t* out) {
  out[threadIdx.x] = divisor.quotient(in[threadIdx.x]);
}

// At both sides of every multiple that is tried, also where 31 bits are too few for a number or the divisor.
void test_divisor() {
  const int64_t small = int64_t{1} << 31, large = int64_t{1} << 40;
  for (const int64_t divisor : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{196}, int64_t{641},
                                int64_t{65536}, int64_t{65537}, small - 1, small, small + 1, 2 * small, large - 1}) {
    for (const int64_t limit : {small, 2 * small, large}) {
      std::vector<double> in, expected;
      for (int64_t multiple = 0; in.size() < kWarp - 2; multiple += (limit - 1) / divisor / 15 * divisor + divisor) {
        for (const int64_t x : {multiple - 1, multiple}) {
          const bool fits = x >= 0 && x < limit;
          in.push_back(static_cast<double>(fits ? x : limit - 1));
          expected.push_back(static_cast<double>((fits ? x : limit - 1) / divisor));
        }
      }
      Case c("quotients by " + std::to_string(divisor) + " of numbers below " + std::to_string(limit));
      const int64_t* numbers = c.input<int64_t>("in", in);
      int64_t* out = c.output<int64_t>("out", in.size());
      c.run([&] {
        launch(&quotients, dim3(1), dim3(static_cast<unsigned>(in.size())), Cuda{}, AnyDivisor(divisor, limit), numbers,
               out);
      });
      c.expect(out, expected, 0);
    }
  }
}

template <class T, int kWidth>
__global__ void copy_vectors(const T* in, T* out) {
  store_vector(out + threadIdx.x * kWidth, load_vector<kWidth>(in + threadIdx.x * kWidth));
}

template <class T, int kWidth>
void test_vectors() {
  const auto values = normal<T>(kWarp * kWidth);
  Case c(std::string("vectors of ") + std::to_string(kWidth) + " " + Scalar<T>::kName);
  const T* in = c.input<T>("in", values);
  T* out = c.output<T>("out", values.size());
  c.run([&] { launch(&copy_vectors<T, kWidth>, dim3(1), dim3(kWarp), Cuda{}, in, out); });
  c.expect(out, values, 0);
  c.expect_coalesced();
}

// For x in (0, 1): results in (½, 1), whose unit in the last place is 2⁻²⁴.
__global__ void approximations(const float* in, float* exp2s, float* small_exp2s, float* reciprocals, float* rsqrts) {
  const float x = in[threadIdx.x];
  exp2s[threadIdx.x] = approximate_exp2(-x);
  small_exp2s[threadIdx.x] = approximate_exp2(-x - 60) * 0x1p60f;
  reciprocals[threadIdx.x] = approximate_reciprocal(1 + x);
  rsqrts[threadIdx.x] = approximate_rsqrt(1 + 3 * x);
}

void test_approximations() {
  constexpr double kUnit = 1.01 * 0x1p-24;  // relative to the largest, which is a little below 1
  std::vector<double> values(kThreads), exp2s(kThreads), small_exp2s(kThreads), reciprocals(kThreads), rsqrts(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    values[i] = (i + 0.5) / kThreads;  // which leaves no rounding in the arguments
    exp2s[i] = small_exp2s[i] = std::exp2(-values[i]);
    reciprocals[i] = 1 / (1 + values[i]);
    rsqrts[i] = 1 / std::sqrt(1 + 3 * values[i]);
  }
  Case c("approximations");
  const float* in = c.input<float>("in", values);
  float *of_exp2 = c.output<float>("exp2", kThreads), *of_small = c.output<float>("small exp2", kThreads);
  float *of_reciprocal = c.output<float>("reciprocal", kThreads), *of_rsqrt = c.output<float>("rsqrt", kThreads);
  c.run([&] {
    launch(&approximations, dim3(1), dim3(kThreads), Cuda{}, in, of_exp2, of_small, of_reciprocal, of_rsqrt);
  });
  c.expect(of_exp2, exp2s, 2 * kUnit);
  c.expect(of_small, small_exp2s, 2 * kUnit);
  c.expect(of_reciprocal, reciprocals, kUnit);
  c.expect(of_rsqrt, rsqrts, 2 * kUnit);
}

__global__ void philox_words(const PhiloxCounter* counters, const PhiloxKey* keys, uint32_t* out) {
  const PhiloxCounter words = philox(counters[threadIdx.x], keys[threadIdx.x]);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = words.word[i];
}

// The published known answers of philox4x32-10 (Random123, kat_vectors).
void test_philox() {
  Case c("philox");
  const uint32_t* counters =
      c.input<uint32_t>("counters", {0, 0, 0, 0, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0x243f6a88u,
                                     0x85a308d3u, 0x13198a2eu, 0x03707344u});
  const uint32_t* keys = c.input<uint32_t>("keys", {0, 0, 0xffffffffu, 0xffffffffu, 0xa4093822u, 0x299f31d0u});
  uint32_t* out = c.output<uint32_t>("out", 12);
  c.run([&] {
    launch(&philox_words, dim3(1), dim3(3), Cuda{}, reinterpret_cast<const PhiloxCounter*>(counters),
           reinterpret_cast<const PhiloxKey*>(keys), out);
  });
  c.expect(out,
           {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u, 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu,
            0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u},
           0);
}

__global__ void square_roots(const float* x, float* out) { out[position()] = square_root_of_normal(x[position()]); }

// To the last bit, of what normal noise takes them of.
void test_square_roots() {
  if (kFewThreads) return;
  std::vector<double> x(256 * kBlock), expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(std::exp2(-31 + 37 * static_cast<double>(i) / x.size()));
    expected[i] = std::sqrt(static_cast<float>(x[i]));
  }
  Case c("square roots of normal numbers");
  const float* in = c.input<float>("x", x);
  float* out = c.output<float>("out", x.size());
  c.run([&] { launch(&square_roots, dim3(256), dim3(kBlock), Cuda{}, in, out); });
  c.expect(out, expected, 0);
}

void run_all() {
  expect_per_thread("places", &places, &places_expected);
  expect_per_thread("shuffle", &shuffle, &shuffle_expected);
  expect_per_thread("shuffle of a segment", &shuffle_of_segment, &shuffle_of_segment_expected);
  expect_per_thread("shuffle up", &shuffle_up, &shuffle_up_expected);
  expect_per_thread("shuffle down", &shuffle_down, &shuffle_down_expected);
  expect_per_thread("shuffle xor", &shuffle_xor, &shuffle_xor_expected);
  expect_per_thread("shuffle of halves", &shuffle_of_halves, &shuffle_of_halves_expected);
  expect_per_thread("ballot", &ballot, &ballot_expected);
  expect_per_thread("any and all", &any_and_all, &any_and_all_expected);
  expect_per_thread("votes at a barrier", &barrier_votes, &barrier_votes_expected);
  expect_per_thread("shared memory", &shared_memory, &shared_memory_expected);
  expect_per_thread("barrier of a warp", &warp_barrier, &warp_barrier_expected);
  expect_per_thread("atomics of shared memory", &atomics_of_shared_memory, &atomics_of_shared_memory_expected);
  test_sums();
  test_dynamic_shared_memory();
  test_last_block();
  test_divisor();
  test_vectors<float, 4>();
  test_vectors<double, 2>();
  test_vectors<Float16, 8>();
  test_vectors<BFloat16, 4>();
  test_approximations();
  test_philox();
  test_square_roots();
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
