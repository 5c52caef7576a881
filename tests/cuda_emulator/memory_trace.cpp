#include "memory_trace.h"

#include <cstdint>
#include <map>
#include <set>
#include <tuple>

#include "emulator.h"

namespace lineavae::test::memory_trace {
namespace {

constexpr uintptr_t kSector = 32;

struct Array {
  std::string name;
  uintptr_t begin, end;
};

struct Site {
  std::string array;
  bool writes;
  size_t requests = 0, sectors = 0, fewest_sectors = 0;
};

using Code = const void*;  // the address behind the access
struct Trace {
  std::vector<Array> arrays;
  std::map<Code, Site> sites;
  // of the block that runs
  uint3 block{};
  std::map<std::pair<Code, unsigned>, unsigned> executions;                      // by thread
  std::map<std::tuple<Code, unsigned, unsigned>, std::set<uintptr_t>> requests;  // by warp and execution: bytes
};

Trace& trace() {
  static Trace instance;
  return instance;
}

void end_block() {
  Trace& t = trace();
  for (const auto& [key, bytes] : t.requests) {
    std::set<uintptr_t> sectors;
    for (const uintptr_t byte : bytes) sectors.insert(byte / kSector);
    Site& site = t.sites[std::get<0>(key)];
    ++site.requests;
    site.sectors += sectors.size();
    site.fewest_sectors += (bytes.size() + kSector - 1) / kSector;
  }
  t.requests.clear();
  t.executions.clear();
}

void record(const void* pointer, size_t num_bytes, bool writes, Code code) {
  const cuda_emulator::Place* const place = cuda_emulator::place;
  if (!place) return;
  Trace& t = trace();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (const Array& array : t.arrays) {
    if (address < array.begin || address >= array.end) continue;
    if (std::memcmp(&place->block, &t.block, sizeof t.block) != 0) end_block();
    t.block = place->block;
    const dim3 size = cuda_emulator::block_size;
    const unsigned thread = place->thread.x + size.x * (place->thread.y + size.y * place->thread.z);
    const unsigned execution = t.executions[{code, thread}]++;
    std::set<uintptr_t>& bytes = t.requests[{code, thread / 32, execution}];
    for (size_t i = 0; i < num_bytes; ++i) bytes.insert(address + i);
    Site& site = t.sites[code];
    site.array = array.name;
    site.writes = writes;
    return;
  }
}

}  // namespace

void watch(const char* name, const void* begin, size_t num_bytes) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  trace().arrays.push_back({name, address, address + num_bytes});
}

std::vector<Access> take() {
  end_block();
  std::vector<Access> accesses;
  for (const auto& [code, site] : trace().sites) {
    accesses.push_back({site.array, site.writes, site.requests, site.sectors, site.fewest_sectors});
  }
  trace() = {};
  return accesses;
}

}  // namespace lineavae::test::memory_trace

// What g++ calls in code compiled with -fsanitize=thread.
#define RECORD(pointer, num_bytes, writes) \
  lineavae::test::memory_trace::record(pointer, num_bytes, writes, __builtin_return_address(0))
#define HOOKS(num_bytes)                                                          \
  void __tsan_read##num_bytes(void* p) { RECORD(p, num_bytes, false); }           \
  void __tsan_write##num_bytes(void* p) { RECORD(p, num_bytes, true); }           \
  void __tsan_unaligned_read##num_bytes(void* p) { RECORD(p, num_bytes, false); } \
  void __tsan_unaligned_write##num_bytes(void* p) { RECORD(p, num_bytes, true); }
extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, unsigned long num_bytes) { RECORD(p, num_bytes, false); }
void __tsan_write_range(void* p, unsigned long num_bytes) { RECORD(p, num_bytes, true); }
// atomics, which are not counted
#define ATOMICS(bits, T)                                                                                         \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return *p; }                                          \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T desired, int, int) {           \
    return __atomic_compare_exchange_n(p, expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ? 1 : 0; \
  }
ATOMICS(8, uint8_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
