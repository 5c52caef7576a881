// Counts the memory sectors that a kernel's accesses touch. A build with this compiles the kernels with
// -fsanitize=thread, so that every access is a call, and links the functions of memory_trace.cpp in place of the race
// detector's.
//
// The accesses of a warp's lanes to one place in the code, each lane's n-th there, are one request. This is the
// indexing of the source, not the machine code of a GPU.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace lineavae::test::memory_trace {

struct Access {
  std::string array;
  bool writes;
  size_t requests;
  size_t sectors;         // of 32 bytes, touched
  size_t fewest_sectors;  // that could hold the bytes
};

// Only arrays that are watched count.
void watch(const char* name, const void* begin, size_t num_bytes);

// The accesses since the last call, one entry per place in the code; forgets the arrays.
std::vector<Access> take();

}  // namespace lineavae::test::memory_trace
