// The schedule and the rules. Compiled without -fsanitize=thread: to the race detector only what the kernels do, and
// the order that barriers, __syncwarp, fences and launches give it, exists. Shuffles and votes give none, as in CUDA.
#include "emulator.h"

#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace cuda_emulator {

const Place* place = nullptr;
dim3 grid_size, block_size;

namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024, kMaxDepth = 64, kMaxRowsOfGrid = 65535;
constexpr size_t kMaxSharedBytes = 227 << 10;  // of a block on an H100; less on other GPUs
// What follows a shared object is NaN, or, where the address sanitizer watches, not to be touched.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kPadding = 0;
#else
constexpr size_t kPadding = 64;
#endif
// The detector has some eight thousand thread identities, and a launch's are given back at its end only.
constexpr uint64_t kMaxThreadsToFindRaces = 4096;

enum class State : uint8_t { kFresh, kRunnable, kAtBarrier, kAtCollective, kExited };

struct Call {
  Collective kind;
  unsigned mask;
  uint64_t value;
  int argument, width;
  Source source;
};

struct Thread {
  Place place;
  unsigned index, warp, lane;
  State state;
  Fiber* fiber;
  Call call;  // at a collective
  uint64_t result;
  unsigned num_warp_syncs;
  bool has_fence, has_atomic;  // behind it
};

struct Warp {
  unsigned lanes, exited, waiting;  // as masks
};

struct SharedObject {
  void* memory;
  size_t num_bytes;
};

// What the race detector orders by; each block has its own.
struct SyncObjects {
  char barrier[2], warp[kMaxThreads / kWarp][2];
};

void run_threads();

struct Engine {
  std::mutex mutex;  // one launch at a time
  Order order = Order::kAscending;
  uint64_t seed = 1, random_state = 0;

  // of a launch
  const std::function<void()>* kernel = nullptr;
  size_t dynamic_shared_bytes = 0;
  Fiber main;
  FiberPool fibers{&run_threads};
  std::exception_ptr failure;
  char launch_begins = 0, launch_ends = 0, all_fences = 0;  // sync objects
  std::vector<SyncObjects> sync_objects;

  // of a block
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  std::vector<unsigned> runnable;  // threads in the order of their turns, from next_turn on
  size_t next_turn = 0;
  unsigned num_alive = 0, num_at_barrier = 0, num_barriers = 0;
  Source barrier_source{};
  BarrierVotes votes{}, last_votes{};
  std::map<const void*, SharedObject> shared_objects;
  SyncObjects* sync = nullptr;

  Engine();
};

Engine& engine() {
  static Engine instance;
  return instance;
}

std::string text(Source source) {
  const char* name = std::strrchr(source.file, '/');
  return std::string(name ? name + 1 : source.file) + ":" + std::to_string(source.line);
}

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

[[noreturn]] void fail(const std::string& message) {
  std::string where;
  if (place) where = ", thread " + text(place->thread) + " of block " + text(place->block);
  throw std::runtime_error("cuda_emulator: " + message + where);
}

Order order_named(const std::string& name) {
  for (const Order order : kOrders) {
    if (name == name_of(order)) return order;
  }
  fail("LINEAVAE_EMULATOR_ORDER must be ascending, descending or random, got " + name);
}

Engine::Engine() {
  if (const char* name = std::getenv("LINEAVAE_EMULATOR_ORDER")) order = order_named(name);
  if (const char* number = std::getenv("LINEAVAE_EMULATOR_SEED")) seed = std::strtoull(number, nullptr, 10);
}

uint64_t random_below(uint64_t bound) {  // xorshift64*
  uint64_t& s = engine().random_state;
  s ^= s >> 12;
  s ^= s << 25;
  s ^= s >> 27;
  return (s * 0x2545f4914f6cdd1dULL >> 16) % bound;
}

// ---- turns ----

template <class F>
void in_order(unsigned count, const F& f) {
  if (engine().order == Order::kDescending) {
    for (unsigned i = count; i-- > 0;) f(i);
  } else {
    for (unsigned i = 0; i < count; ++i) f(i);
  }
}

void make_runnable(Thread& thread) {
  if (thread.state != State::kFresh) thread.state = State::kRunnable;
  engine().runnable.push_back(thread.index);
}

Thread* take_next() {
  Engine& e = engine();
  if (e.next_turn == e.runnable.size()) {
    e.runnable.clear();
    e.next_turn = 0;
    return nullptr;
  }
  unsigned& next = e.runnable[e.next_turn];
  if (e.order == Order::kRandom)
    std::swap(next, e.runnable[e.next_turn + random_below(e.runnable.size() - e.next_turn)]);
  ++e.next_turn;
  return &e.threads[next];
}

// Gives the turn to `next`, or to the launch where it is null.
void switch_to(Thread* next, Fiber& from, bool from_is_done) {
  Engine& e = engine();
  e.current = next;
  place = next ? &next->place : nullptr;
  if (!next) {
    switch_fiber(from, e.main, from_is_done);
    return;
  }
  if (next->state == State::kFresh) next->fiber = e.fibers.take();
  next->state = State::kRunnable;
  switch_fiber(from, *next->fiber, from_is_done);
}

// The current thread has said what it waits for; returns when it has its turn again.
void wait() {
  Thread* const self = engine().current;
  Thread* const next = take_next();
  if (next != self) switch_to(next, *self->fiber, false);
}

void check_no_lane_waits_for(const Thread& thread) {
  Engine& e = engine();
  const unsigned waiting = e.warps[thread.warp].waiting;
  for (unsigned lane = 0; waiting != 0 && lane < kWarp; ++lane) {
    if (!(waiting >> lane & 1)) continue;
    const Call& call = e.threads[thread.warp * kWarp + lane].call;
    if (call.mask >> thread.lane & 1)
      fail("the thread exits while others wait for it at a warp collective, " + text(call.source));
  }
}

void run_current() {
  Engine& e = engine();
  acquire(&e.launch_begins);
  try {
    (*e.kernel)();
    if (e.num_at_barrier > 0) fail("the thread exits while others wait at __syncthreads, " + text(e.barrier_source));
    check_no_lane_waits_for(*e.current);
  } catch (...) {
    if (!e.failure) e.failure = std::current_exception();
  }
  Thread& thread = *e.current;
  thread.state = State::kExited;
  e.warps[thread.warp].exited |= 1u << thread.lane;
  --e.num_alive;
  release(&e.launch_ends);
}

// What every fiber runs.
void run_threads() {
  entered_fiber();
  Engine& e = engine();
  for (;;) {
    run_current();
    Fiber* const fiber = e.current->fiber;
    Thread* const next = e.failure ? nullptr : take_next();
    // a thread that has not begun can have this fiber without any switch; not where each must be told apart
    if (!kFindRaces && next && next->state == State::kFresh) {
      next->fiber = fiber;
      next->state = State::kRunnable;
      e.current = next;
      place = &next->place;
      continue;
    }
    if (!kFindRaces) e.fibers.give_back(fiber);
    switch_to(next, *fiber, true);
  }
}

std::string who_waits_where() {
  std::map<std::string, unsigned> waiting;
  for (const Thread& thread : engine().threads) {
    if (thread.state == State::kAtCollective) ++waiting["a warp collective, " + text(thread.call.source)];
    if (thread.state == State::kAtBarrier) ++waiting["__syncthreads, " + text(engine().barrier_source)];
  }
  std::string list;
  for (const auto& [where, count] : waiting) list += "\n  " + std::to_string(count) + " threads at " + where;
  return list;
}

void run_block(unsigned index, dim3 grid, dim3 block) {
  Engine& e = engine();
  const uint3 block_index{index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
  const unsigned count = block.x * block.y * block.z;
  e.threads.assign(count, {});
  e.warps.assign((count + kWarp - 1) / kWarp, {});
  e.num_alive = count;
  e.num_at_barrier = e.num_barriers = 0;
  e.votes = {0, false, true};
  e.sync = &e.sync_objects[kFindRaces ? index : 0];
  e.fibers.begin_block();
  in_order(count, [&](unsigned i) {
    Thread& thread = e.threads[i];
    thread.place = {{i % block.x, i / block.x % block.y, i / block.x / block.y}, block_index};
    thread.index = i;
    thread.warp = i / kWarp;
    thread.lane = i % kWarp;
    e.warps[thread.warp].lanes |= 1u << thread.lane;
    make_runnable(thread);
  });
  while (e.num_alive > 0 && !e.failure) {
    Thread* const next = take_next();
    if (next) {
      switch_to(next, e.main, false);
    } else {
      e.failure = std::make_exception_ptr(std::runtime_error("cuda_emulator: deadlock" + who_waits_where()));
    }
  }
  e.runnable.clear();
  e.next_turn = 0;
  for (const auto& [key, object] : e.shared_objects) std::free(object.memory);
  e.shared_objects.clear();
}

// ---- warp collectives ----

// The lane whose value `lane` reads; its own where the source is beyond its segment, as in CUDA.
int shuffle_source(const Call& call, int lane) {
  const int segment = lane / call.width * call.width;
  int source = lane;
  switch (call.kind) {
    case Collective::kShuffle:
      return segment + (call.argument & (call.width - 1));
    case Collective::kShuffleUp:
      source = lane - call.argument;
      return source < segment ? lane : source;
    case Collective::kShuffleDown:
      source = lane + call.argument;
      break;
    case Collective::kShuffleXor:
      source = lane ^ call.argument;
      break;
    default:
      break;
  }
  return source >= segment + call.width ? lane : source;
}

// All lanes of the mask have called: gives each its result and its turn.
void complete(Warp& warp, Thread* lanes, unsigned mask) {
  unsigned ballot = 0;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (mask >> i & 1 && lanes[i].call.value != 0) ballot |= 1u << i;
  }
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    const Call& call = lanes[i].call;
    switch (call.kind) {
      case Collective::kSyncWarp:
        lanes[i].result = 0;
        break;
      case Collective::kBallot:
        lanes[i].result = ballot;
        break;
      case Collective::kAny:
        lanes[i].result = ballot != 0;
        break;
      case Collective::kAll:
        lanes[i].result = ballot == mask;
        break;
      default: {
        const int source = shuffle_source(call, static_cast<int>(i));
        constexpr uint64_t kUndefined = ~uint64_t{0};
        lanes[i].result = mask >> source & 1 ? lanes[source].call.value : kUndefined;
      }
    }
  }
  warp.waiting &= ~mask;
  in_order(kWarp, [&](unsigned i) {
    if (mask >> i & 1) make_runnable(lanes[i]);
  });
}

}  // namespace

uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width, Source source) {
  const HiddenFromDetector hidden;
  Engine& e = engine();
  Thread& self = *e.current;
  Warp& warp = e.warps[self.warp];
  Thread* const lanes = &e.threads[self.warp * kWarp];
  if (!(mask >> self.lane & 1)) fail("the calling lane is not in the mask of a warp collective, " + text(source));
  if (mask & (warp.exited | ~warp.lanes))
    fail("the mask of a warp collective names exited or absent lanes, " + text(source));
  self.call = {kind, mask, value, argument, width, source};
  self.state = State::kAtCollective;
  warp.waiting |= 1u << self.lane;
  char* const sync = &e.sync->warp[self.warp][self.num_warp_syncs % 2];
  if (kind == Collective::kSyncWarp) release(sync);
  bool all_called = (warp.waiting & mask) == mask;
  for (unsigned i = 0; all_called && i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    const Call& other = lanes[i].call;
    if (other.mask != mask) {
      all_called = false;
    } else if (other.kind != kind || other.source.line != source.line) {
      fail("divergent warp collectives, " + text(source) + " and " + text(other.source));
    }
  }
  if (all_called) complete(warp, lanes, mask);
  wait();
  if (kind == Collective::kSyncWarp) {
    acquire(sync);
    ++self.num_warp_syncs;
  }
  return self.result;
}

BarrierVotes barrier(bool predicate, Source source) {
  const HiddenFromDetector hidden;
  Engine& e = engine();
  const size_t count = e.threads.size();
  if (e.num_alive < count) {
    fail("__syncthreads, " + text(source) + ", after " + std::to_string(count - e.num_alive) +
         " threads of the block have exited");
  }
  if (e.num_at_barrier == 0) e.barrier_source = source;
  if (e.barrier_source.line != source.line || std::strcmp(e.barrier_source.file, source.file) != 0)
    fail("divergent __syncthreads, " + text(source) + " and " + text(e.barrier_source));
  char* const sync = &e.sync->barrier[e.num_barriers % 2];
  release(sync);
  e.current->state = State::kAtBarrier;
  e.votes.count += predicate;
  e.votes.any |= predicate;
  e.votes.all &= predicate;
  if (++e.num_at_barrier == count) {
    e.num_at_barrier = 0;
    ++e.num_barriers;
    e.last_votes = e.votes;
    e.votes = {0, false, true};
    in_order(static_cast<unsigned>(count), [&](unsigned i) { make_runnable(e.threads[i]); });
  }
  wait();
  acquire(sync);
  return e.last_votes;
}

// Fences order two threads where one has an atomic after its fence, and the other one before its own.
void fence() {
  Engine& e = engine();
  e.current->has_fence = true;
  if (e.current->has_atomic) acquire(&e.all_fences);
}

void before_atomic() {
  Engine& e = engine();
  e.current->has_atomic = true;
  if (e.current->has_fence) release(&e.all_fences);
  if (e.order != Order::kRandom || random_below(4) > 0) return;
  const HiddenFromDetector hidden;
  e.runnable.push_back(e.current->index);
  wait();
}

void* shared(const void* key, size_t num_bytes) {
  const HiddenFromDetector hidden;
  Engine& e = engine();
  SharedObject& object = e.shared_objects[key];
  if (!object.memory) {
    constexpr size_t kAlignment = 16;
    const size_t allocated = num_bytes + kPadding;
    if (posix_memalign(&object.memory, kAlignment, std::max<size_t>(allocated, 1)) != 0) fail("out of memory");
    object.num_bytes = num_bytes;
    std::memset(object.memory, 0xff, allocated);
    size_t total = 0;
    for (const auto& [other_key, other] : e.shared_objects) total += other.num_bytes;
    if (total > kMaxSharedBytes)
      fail("a block has " + std::to_string(total) + " bytes of shared memory, more than any GPU");
  }
  return object.memory;
}

void* dynamic_shared() { return shared(nullptr, engine().dynamic_shared_bytes); }

void launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& kernel) {
  Engine& e = engine();
  const std::lock_guard<std::mutex> lock(e.mutex);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads || block.z > kMaxDepth || blocks == 0 || grid.x > INT32_MAX ||
      grid.y > kMaxRowsOfGrid || grid.z > kMaxRowsOfGrid || dynamic_shared_bytes > kMaxSharedBytes) {
    fail("no GPU launches such a grid");
  }
  if (kFindRaces && threads * blocks > kMaxThreadsToFindRaces) {
    fail("races are found in launches of up to " + std::to_string(kMaxThreadsToFindRaces) + " threads, got " +
         std::to_string(threads * blocks));
  }
  const HiddenFromDetector hidden;
  grid_size = grid;
  block_size = block;
  e.kernel = &kernel;
  e.dynamic_shared_bytes = dynamic_shared_bytes;
  e.failure = nullptr;
  e.random_state = (e.seed + 1) * 0x9e3779b97f4a7c15ULL;
  e.sync_objects.resize(kFindRaces ? kMaxThreadsToFindRaces : 1);
  adopt_caller(e.main);
  release(&e.launch_begins);
  std::vector<unsigned> turns;
  in_order(static_cast<unsigned>(blocks), [&](unsigned i) { turns.push_back(i); });
  if (e.order == Order::kRandom) {
    for (size_t i = turns.size(); i > 1; --i) std::swap(turns[i - 1], turns[random_below(i)]);
  }
  for (size_t i = 0; i < turns.size() && !e.failure; ++i) run_block(turns[i], grid, block);
  acquire(&e.launch_ends);
  e.fibers.end_launch();
  if (e.failure) std::rethrow_exception(e.failure);
}

void set_order(Order order) { engine().order = order; }

const char* name_of(Order order) {
  switch (order) {
    case Order::kAscending:
      return "ascending";
    case Order::kDescending:
      return "descending";
    default:
      return "random";
  }
}

}  // namespace cuda_emulator
