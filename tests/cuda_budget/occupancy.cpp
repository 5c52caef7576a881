// Theoretical occupancy by the toolkit's cuda_occupancy.h, which calculates on the host and asks no GPU or driver.
// Reads lines "architecture registers shared_bytes threads", writes lines "blocks_per_SM percent limiters".
#include <cuda_occupancy.h>

#include <cstdio>
#include <string>

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Alike in all: 2048 threads and 65536
// registers per SM; 48 KB of shared memory per block, and all but 1 KB of an SM's for kernels that ask for more; 1 KB
// of each block's is the system's. The header itself knows the number of blocks and the sizes things are rounded to.
constexpr size_t kKilobyte = 1024;
constexpr int kThreadsPerSM = 2048;

size_t shared_memory_per_sm(int architecture) {
  switch (architecture) {
    case 80:
      return 164 * kKilobyte;
    case 90:
    case 100:
      return 228 * kKilobyte;
    default:
      return 0;
  }
}

cudaOccDeviceProp device(int architecture) {
  cudaOccDeviceProp d;
  d.computeMajor = architecture / 10;
  d.computeMinor = architecture % 10;
  d.maxThreadsPerBlock = 1024;
  d.maxThreadsPerMultiprocessor = kThreadsPerSM;
  d.regsPerBlock = d.regsPerMultiprocessor = 65536;
  d.warpSize = 32;
  d.sharedMemPerBlock = 48 * kKilobyte;
  d.sharedMemPerMultiprocessor = shared_memory_per_sm(architecture);
  d.reservedSharedMemPerBlock = kKilobyte;
  d.sharedMemPerBlockOptin = d.sharedMemPerMultiprocessor - d.reservedSharedMemPerBlock;
  d.numSms = 1;  // asked for, but only the suggestion of a grid depends on it
  return d;
}

std::string limiters(unsigned factors) {
  std::string text;
  const auto add = [&](unsigned factor, const char* name) {
    if (factors & factor) text += (text.empty() ? "" : ", ") + std::string(name);
  };
  add(OCC_LIMIT_WARPS, "threads");
  add(OCC_LIMIT_REGISTERS, "registers");
  add(OCC_LIMIT_SHARED_MEMORY, "shared memory");
  add(OCC_LIMIT_BLOCKS, "blocks");
  return text;
}

int main() {
  int architecture, registers, threads;
  size_t shared;
  while (std::scanf("%d %d %zu %d", &architecture, &registers, &shared, &threads) == 4) {
    const cudaOccDeviceProp properties = device(architecture);
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = threads;
    kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared;
    const cudaOccDeviceState state;
    cudaOccResult result;
    if (shared_memory_per_sm(architecture) == 0 ||
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &properties, &kernel, &state, threads, shared)) {
      std::fprintf(stderr, "no occupancy for sm_%d, %d registers, %zu bytes of shared memory and %d threads\n",
                   architecture, registers, shared, threads);
      return 1;
    }
    const int blocks = result.activeBlocksPerMultiprocessor;
    const int warps = (threads + properties.warpSize - 1) / properties.warpSize;
    std::printf("%d %g %s\n", blocks, 100.0 * blocks * warps * properties.warpSize / kThreadsPerSM,
                limiters(result.limitingFactors).c_str());
  }
}
