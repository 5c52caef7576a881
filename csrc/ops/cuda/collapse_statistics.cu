// A block takes one part of the rows of a tile of 16 columns, half a warp a row: whole sectors are read. Cells
// are counted in shared memory and added to the result at the end; a thread sums the moments of a few rows at a time in
// the accumulation type, and then in double. The last block of a tile writes its results. Integers alone are added
// atomically, and moments merge in a fixed order. Deterministic.
#include "common/cuda.cuh"
#include "ops/collapse_statistics.h"

namespace lineavae {
namespace cuda {

constexpr int kTile = 16;  // columns
template <class T>
constexpr int kTileBlocks = sizeof(T) == 8 ? 2 : 3;  // per multiprocessor: registers and shared memory hold no more
template <class T>
constexpr int kRowsInFlight = sizeof(T) == 8 ? 2 : 8;  // per thread
constexpr int kVariables = LatentMoments::kVariables;

__host__ __device__ constexpr int64_t count_tiles(int64_t latents) { return (latents + kTile - 1) / kTile; }

// Every thread of the block may read the table afterwards.
template <class A>
__device__ void fill(CellTable<A>& table, const Thresholds& thresholds, bool with_bins) {
  LINEAVAE_SHARED(placed, Threshold<A>[kMaxThresholds]);
  const int thread = threadIdx.x, count = thresholds.count;
  if (thread < count) placed[thread].bound = Bins<A>::bound(thresholds[thread]);
  __syncthreads();
  if (thread < count) placed[thread].bin = with_bins ? split_bin(placed, thread) : Threshold<A>::kNone;
  __syncthreads();
  if (with_bins) {
    for (int bin = thread; bin < kHistogramBins; bin += kThreads) fill_bin(table, placed, count, bin);
    __syncthreads();
  }
  if (thread < count) fill_threshold(table, placed, count, thread);
  if (thread == 0) table.num_compared = count_compared(placed, count);
  __syncthreads();
}

template <class B>
struct ThreadSums {
  B sum[kVariables] = {}, squares[kVariables] = {};
};

// What a thread knows of the moments of its column, relative to its first row.
template <class A>
struct ThreadMoments {
  using Bits = typename Bins<A>::Bits;
  Origin<A> origin[kVariables];
  ThreadSums<double> sums;
  Bits minimum = ~Bits{0}, maximum = 0;

  // The sums of a few rows in float begin at 0, and are added to the others; those in double go on.
  __device__ __forceinline__ ThreadSums<A> begin_few() const {
    if constexpr (sizeof(A) == sizeof(double)) return sums;
    return {};
  }
  __device__ __forceinline__ void end_few(const ThreadSums<A>& few) {
    if constexpr (sizeof(A) == sizeof(double)) {
      sums = few;
    } else {
#pragma unroll
      for (int i = 0; i < kVariables; ++i) {
        sums.sum[i] += few.sum[i];
        sums.squares[i] += few.squares[i];
      }
    }
  }
  __device__ __forceinline__ void add(A kl, A mean, A variance, ThreadSums<A>& few) {
    const A value[kVariables] = {kl, mean, variance};
#pragma unroll
    for (int i = 0; i < kVariables; ++i) {
      const A x = origin[i].of(value[i]);
      few.sum[i] += x;
      few.squares[i] = multiply_add(x, x, few.squares[i]);
    }
    const Bits bits = Bins<A>::bits_of(kl);
    minimum = bits < minimum ? bits : minimum;
    maximum = bits > maximum ? bits : maximum;
  }

  __device__ bool are_finite() const {
    return is_finite(sums.squares[0]) && is_finite(sums.squares[1]) && is_finite(sums.squares[2]);
  }
  __device__ LatentMoments of(int64_t rows) const {
    LatentMoments moments = no_moments();
    moments.count = static_cast<double>(rows);
#pragma unroll
    for (int i = 0; i < kVariables; ++i) moments.set(i, origin[i].moments(moments.count, sums.sum[i], sums.squares[i]));
    moments.minimum = bit_cast<A>(minimum);
    moments.maximum = bit_cast<A>(maximum);
    return moments;
  }
};

// The counters of a thread's column, one every `stride`: in shared memory, but those of a few thresholds alone in
// registers, until they are added to it.
template <class A, bool kBins>
struct ThreadCounters {
  const CellTable<A>& table;
  uint32_t* of_column;
  uint32_t* last;  // that of the first threshold that splits no bin
  int stride, num_compared;
  A bound[kMostCompared];
  float below[kMostCompared];  // a comparison gives a float at once, and these are exact

  __device__ ThreadCounters(const CellTable<A>& table_, uint32_t* of_column_, int stride_, int cells)
      : table(table_),
        of_column(of_column_),
        last(of_column_ + (cells - 1) * stride_),
        stride(stride_),
        num_compared(table_.num_compared) {
    if constexpr (!kBins) {
#pragma unroll
      for (int e = 0; e < kMostCompared; ++e) {
        bound[e] = e < num_compared ? bit_cast<A>(table.compared[e]) : 0;
        below[e] = 0;
      }
    }
  }
  template <int kRows>
  __device__ __forceinline__ void add(const A (&kl)[kRows]) {
    if constexpr (kBins) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) atomicAdd(of_column + cell_of<A>(Bins<A>::bits_of(kl[i]), table) * stride, 1u);
#pragma unroll 1
      for (int e = 0; e < num_compared; ++e) {
#pragma unroll
        for (int i = 0; i < kRows; ++i)
          if (Bins<A>::bits_of(kl[i]) < table.compared[e]) atomicAdd(compared(e), 1u);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int e = 0; e < kMostCompared; ++e) below[e] += kl[i] < bound[e] ? 1.0f : 0.0f;
      }
    }
  }
  __device__ void finish() {
    if constexpr (!kBins) {
#pragma unroll
      for (int e = 0; e < kMostCompared; ++e)
        if (e < num_compared) atomicAdd(compared(e), static_cast<uint32_t>(below[e]));
    }
  }
  __device__ uint32_t* compared(int e) const { return last - e * stride; }
};

// Adds so many rows of a thread, one every `next`, and goes on to those after them.
template <int kRows, class T, bool kBins>
__device__ __forceinline__ void add_rows(const T*& mean, const T*& logvar, int64_t next,
                                         ThreadMoments<accumulate_t<T>>& moments,
                                         ThreadCounters<accumulate_t<T>, kBins>& counters) {
  using A = accumulate_t<T>;
  T means[kRows], logvars[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    means[i] = *mean;
    logvars[i] = *logvar;
    mean += next;
    logvar += next;
  }
  A kl[kRows];
  ThreadSums<A> few = moments.begin_few();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const A m = load(means[i]), t = load(logvars[i]);
    kl[i] = gaussian_kl_element(m, t);
    moments.add(kl[i], m, exponential(t), few);
  }
  moments.end_few(few);
  counters.add(kl);
}

// What each thread has of its column is merged, halves of the rows at a time, until the first row has all.
__device__ inline LatentMoments merge_rows(LatentMoments moments, LatentMoments* of_threads, int rows, int columns) {
  const int column = threadIdx.x % columns, row = threadIdx.x / columns;
  __syncthreads();
  of_threads[threadIdx.x] = moments;
  for (; rows > 1; rows = (rows + 1) / 2) {
    __syncthreads();
    const int other = row + (rows + 1) / 2;
    if (other < rows) of_threads[threadIdx.x] = moments = merge(moments, of_threads[other * columns + column]);
  }
  return moments;
}

// A warp writes how many are in the cells before each cell, and before the end.
__device__ inline void sum_cells(const int64_t* cells, int count, int64_t* before) {
  int64_t sum = 0;
  for (int first = 0; first < count; first += kWarp) {
    int64_t value = first + lane() < count ? cells[first + lane()] : 0;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int64_t other = __shfl_up_sync(kFullMask, value, offset);
      if (lane() >= offset) value += other;
    }
    if (first + lane() < count) before[first + lane() + 1] = sum + value;
    sum += __shfl_sync(kFullMask, value, kWarp - 1);
  }
  if (lane() == 0) before[0] = 0;
  __syncwarp();
}

// Shared memory holds the counters of all cells, a column's with this stride, then the moments of the threads, then for
// each warp how many are in the cells before each.
__host__ __device__ constexpr int counter_stride(int columns) { return columns | 1; }  // odd: banks do not conflict
template <class T>
size_t shared_bytes(const CollapseStatistics<T>& a) {
  const int columns = static_cast<int>(std::min<int64_t>(kTile, a.latents));
  return std::max({sizeof(uint32_t) * a.num_cells() * counter_stride(columns), sizeof(LatentMoments) * kThreads,
                   sizeof(int64_t) * (a.num_cells() + 1) * std::min(kWarps, columns)});
}

template <class T, bool kBins>
__global__ void __launch_bounds__(kThreads, resident(kTileBlocks<T>))
    collapse_statistics_kernel(const CollapseStatistics<T> a) {
  using A = accumulate_t<T>;
  constexpr int kRows = kRowsInFlight<T>;
  LINEAVAE_DYNAMIC_SHARED(unsigned char, shared);
  LINEAVAE_SHARED(table, CellTable<A>);
  uint32_t* const counters = reinterpret_cast<uint32_t*>(shared);
  const unsigned parts = static_cast<unsigned>(a.num_parts), tiles = static_cast<unsigned>(count_tiles(a.latents));
  const int64_t part = blockIdx.x % parts, first = blockIdx.x / parts % tiles * kTile,
                model = blockIdx.x / parts / tiles;
  const int columns = a.latents - first < kTile ? static_cast<int>(a.latents - first) : kTile;
  const int stride = counter_stride(columns), cells = num_cells(kBins, a.thresholds.count);
  for (int i = threadIdx.x; i < cells * stride; i += kThreads) counters[i] = 0;
  fill(table, a.thresholds, kBins);

  const int step = kThreads / columns;  // rows that the block reads at once
  const int column = threadIdx.x % columns, row_of_thread = threadIdx.x / columns;
  const int64_t begin = part * a.part_rows + row_of_thread;
  const int rows = static_cast<int>((a.part_end(part) - begin + step - 1) / step);  // of the thread
  LatentMoments moments = no_moments();
  if (row_of_thread < step && rows > 0) {
    const int64_t offset = (model * a.rows + begin) * a.row_stride + first + column, next = step * a.row_stride;
    const T *mean = a.mean + offset, *logvar = a.logvar + offset;
    ThreadMoments<A> thread;
    ThreadCounters<A, kBins> counts(table, counters + column, stride, cells);
    const A m = load(*mean), t = load(*logvar);
    thread.origin[0] = Origin<A>::at(gaussian_kl_element(m, t));
    thread.origin[1] = Origin<A>::at(m);
    thread.origin[2] = Origin<A>::at(exponential(t));
    int left = rows;
    for (; left >= kRows; left -= kRows) add_rows<kRows>(mean, logvar, next, thread, counts);
#pragma unroll 1
    for (; left > 0; --left) add_rows<1>(mean, logvar, next, thread, counts);
    counts.finish();
    moments = thread.are_finite() ? thread.of(rows) : careful_moments(a.mean + offset, a.logvar + offset, rows, next);
  }
  __syncthreads();

  int64_t* const result = a.cells + (model * a.latents + first) * cells;
  const int warp = threadIdx.x / kWarp;
  for (int j = warp; j < columns; j += kWarps) {
    for (int i = lane(); i < cells; i += kWarp) {
      const unsigned long long count = counters[i * stride + j];
      if (count > 0) atomicAdd(reinterpret_cast<unsigned long long*>(result + j * cells + i), count);
    }
  }
  LatentMoments* const of_threads = reinterpret_cast<LatentMoments*>(shared);
  moments = merge_rows(moments, of_threads, step, columns);
  LatentMoments* const of_parts = a.parts + model * parts * a.latents + first + column;
  if (row_of_thread == 0) of_parts[part * a.latents] = moments;
  __syncthreads();
  uint32_t* const ticket = reinterpret_cast<uint32_t*>(a.tickets() + model * a.latents + first);
  if (!is_last_block(ticket, parts)) return;

  moments = no_moments();
#pragma unroll 1  // the registers of one step at a time; what is beyond the last row has no part in the merging
  for (int64_t i = row_of_thread; i < parts; i += step) moments = merge(moments, of_parts[i * a.latents]);
  moments = merge_rows(moments, of_threads, step, columns);
  const int64_t index = model * a.latents + first;
  if (row_of_thread == 0) store(a, index + column, moments);
  __syncthreads();
  int64_t* const before = reinterpret_cast<int64_t*>(shared) + warp * (cells + 1);
  for (int j = warp; j < columns; j += kWarps) {
    sum_cells(result + j * cells, cells, before);
    for (int e = lane(); e < a.thresholds.count; e += kWarp) store_count(a, index + j, e, table, before);
    if (a.with_histogram)
      for (int bin = lane(); bin < kHistogramBins; bin += kWarp) store_bin(a, index + j, bin, table, before);
    __syncwarp();
  }
}

}  // namespace cuda

template <class T>
void collapse_statistics(Cuda device, const CollapseStatistics<T>& a) {
  using namespace cuda;
  const int64_t latents = a.models * a.latents;
  clear(a.cells, latents * a.num_cells() + latents, device);  // and the tickets behind them
  launch(a.with_bins() ? &collapse_statistics_kernel<T, true> : &collapse_statistics_kernel<T, false>,
         blocks(a.models * count_tiles(a.latents) * a.num_parts), kThreads, shared_bytes(a), device, a);
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, collapse_statistics, CollapseStatistics)

}  // namespace lineavae
