// A block takes one part of the rows of a tile of 16 columns, half a warp a row: whole sectors are read. Cells
// are counted in shared memory and added to the result at the end, moments accumulated per thread in double. Integers
// alone are added atomically, and moments merge in a fixed order. Deterministic.
#include "common/cuda.cuh"
#include "ops/collapse_statistics.h"
#include "ops/gaussian_kl.h"

namespace lineavae {
namespace cuda {

constexpr int kTile = 16;  // columns
constexpr int kTileThreads = 256;
constexpr int kTileBlocks = 3;  // per multiprocessor: as many as have their counters in the shared memory of sm_80
template <class T>
constexpr int kRowsInFlight = sizeof(T) == 8 ? 2 : 4;  // per thread

template <class A>
__global__ void __launch_bounds__(kThreads)
    cell_table_kernel(const double* thresholds, int count, bool with_histogram, CellTable<A>* table) {
  LINEAVAE_SHARED(placed, Threshold<A>[kMaxThresholds]);
  const int thread = threadIdx.x;
  if (thread < count) placed[thread] = place<A>(thresholds, thread, with_histogram);
  __syncthreads();
  if (thread == 0) table->num_compared = count_compared(placed, count);
  if (thread < count) fill_threshold(*table, placed, count, thread);
  for (int bin = thread; bin < kHistogramBins; bin += kThreads) fill_bin(*table, placed, count, bin);
}

// What a thread knows of its column.
template <class A>
struct ThreadMoments {
  int count = 0, infinite = 0;
  A shift[LatentMoments::kVariables] = {};
  double sum[LatentMoments::kVariables] = {}, squares[LatentMoments::kVariables] = {};
  A minimum = ExpTraits<A>::kInfinity, maximum = -ExpTraits<A>::kInfinity;

  __device__ void add(A kl, A mean, A variance) {
    const A value[LatentMoments::kVariables] = {kl, mean, variance};
#pragma unroll
    for (int i = 0; i < LatentMoments::kVariables; ++i) {
      if (count == 0) shift[i] = shift_of(value[i]);
      const double x = static_cast<double>(value[i]) - shift[i];
      sum[i] += x;
      squares[i] += x * x;
    }
    ++count;
    infinite += kl == ExpTraits<A>::kInfinity;
    minimum = kl < minimum ? kl : minimum;
    maximum = kl > maximum ? kl : maximum;
  }

  __device__ LatentMoments moments() const {
    LatentMoments all = no_moments();
    if (count == 0) return all;
    all.count = count;
    all.infinite = infinite;
#pragma unroll
    for (int i = 0; i < LatentMoments::kVariables; ++i) set_moments(all, i, shift[i], sum[i], squares[i]);
    all.minimum = minimum;
    all.maximum = maximum;
    return all;
  }
};

// Shared memory holds the counters of all cells, a column's with this stride, and afterwards the moments of the
// threads.
__host__ __device__ constexpr int counter_stride(int columns) { return columns | 1; }  // odd: banks do not conflict
template <class T>
size_t shared_bytes(const CollapseStatistics<T>& a) {
  const int columns = static_cast<int>(std::min<int64_t>(kTile, a.latents));
  return std::max(sizeof(uint32_t) * num_cells(a.with_histogram, a.thresholds) * counter_stride(columns),
                  sizeof(LatentMoments) * kTileThreads);
}

template <class T, bool kHistogram>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks) collapse_statistics_kernel(const CollapseStatistics<T> a) {
  using A = accumulate_t<T>;
  constexpr int kRows = kRowsInFlight<T>;
  LINEAVAE_DYNAMIC_SHARED(unsigned char, shared);
  uint32_t* counters = reinterpret_cast<uint32_t*>(shared);
  const CellTable<A>& table = *a.table;
  const int64_t parts = num_row_parts(a.rows), tiles = (a.latents + kTile - 1) / kTile;
  const int64_t part = blockIdx.x % parts, first = blockIdx.x / parts % tiles * kTile,
                model = blockIdx.x / parts / tiles;
  const int columns = a.latents - first < kTile ? static_cast<int>(a.latents - first) : kTile;
  const int stride = counter_stride(columns), cells = num_cells(kHistogram, a.thresholds);
  for (int i = threadIdx.x; i < cells * stride; i += kTileThreads) counters[i] = 0;
  __syncthreads();

  const int step = kTileThreads / columns;  // rows that the block reads at once
  const int column = threadIdx.x % columns, row_of_thread = threadIdx.x / columns;
  const int64_t end = (part + 1) * rows_per_part(a.rows) < a.rows ? (part + 1) * rows_per_part(a.rows) : a.rows;
  ThreadMoments<A> moments;
  if (row_of_thread < step) {
    int64_t row = part * rows_per_part(a.rows) + row_of_thread;
    int64_t index = (model * a.rows + row) * a.row_stride + first + column;
    for (; row < end; row += step * kRows) {
      T mean[kRows], logvar[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (row + i * step < end) {
          mean[i] = a.mean[index];
          logvar[i] = a.logvar[index];
        }
        index += step * a.row_stride;
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const A m = load(mean[i]), t = load(logvar[i]), kl = gaussian_kl_element(m, t);
        const auto bits = Bins<A>::bits_of(kl);
        if (row + i * step >= end || Bins<A>::is_nan(bits)) continue;
        moments.add(kl, m, exponential(t));
        if constexpr (kHistogram) atomicAdd(&counters[cell_of<A>(bits, table) * stride + column], 1u);
        for (int e = 0; e < table.num_compared; ++e)
          if (bits < table.compared[e]) atomicAdd(&counters[(cells - 1 - e) * stride + column], 1u);
      }
    }
  }
  __syncthreads();

  int64_t* const result = a.cells + (model * a.latents + first) * cells;
  for (int i = threadIdx.x; i < columns * cells; i += kTileThreads) {
    const uint32_t count = counters[i % cells * stride + i / cells];
    if (count > 0) atomicAdd(reinterpret_cast<unsigned long long*>(result + i), static_cast<unsigned long long>(count));
  }
  __syncthreads();

  LatentMoments* of_threads = reinterpret_cast<LatentMoments*>(shared);
  of_threads[threadIdx.x] = moments.moments();
  // halves of the rows of a column merge until one is left
  for (int rows = step; rows > 1; rows = (rows + 1) / 2) {
    __syncthreads();
    const int other = row_of_thread + (rows + 1) / 2;
    if (other < rows) {
      of_threads[threadIdx.x] = merge(of_threads[threadIdx.x], of_threads[other * columns + column]);
    }
  }
  if (row_of_thread == 0) a.parts[(model * parts + part) * a.latents + first + column] = of_threads[threadIdx.x];
}

// Those of the lane `offset` above.
__device__ inline VariableMoments shuffle_down(const VariableMoments& moments, int offset) {
  return {__shfl_down_sync(kFullMask, moments.count, offset), __shfl_down_sync(kFullMask, moments.mean, offset),
          __shfl_down_sync(kFullMask, moments.squares, offset)};
}

// A block per latent: a warp per threshold, a thread per bin, a warp for the moments of each variable, and one for what
// all have in common.
template <class T>
__global__ void __launch_bounds__(kThreads) latent_results_kernel(const CollapseStatistics<T> a) {
  using A = accumulate_t<T>;
  const CellTable<A>& table = *a.table;
  const int64_t index = blockIdx.x, cells_per_latent = num_cells(a.with_histogram, a.thresholds);
  const int64_t* cells = a.cells + index * cells_per_latent;
  for (int e = threadIdx.x / kWarp; e < a.thresholds; e += kWarps) {
    const int below = table.below[e];
    int64_t count = 0;
    for (int i = lane(); i < below; i += kWarp) count += cells[i];
    count = warp_sum(count);
    if (lane() == 0) a.counts[index * a.thresholds + e] = below < 0 ? cells[cells_per_latent + below] : count;
  }
  if (a.with_histogram) {
    for (int bin = threadIdx.x; bin < kHistogramBins; bin += kThreads) {
      const auto entry = table.bins[bin];
      const int64_t* cell = cells + first_cell<A>(bin, entry);
      a.histogram[index * kHistogramBins + bin] = cell[0] + (is_split<A>(entry) ? cell[1] : 0);
    }
  }
  const int64_t num_parts = num_row_parts(a.rows), model = index / a.latents;
  const LatentMoments* parts = a.parts + model * num_parts * a.latents + index % a.latents;
  const int warp = threadIdx.x / kWarp;
  if (warp < LatentMoments::kVariables) {
    VariableMoments moments{0, 0, 0};
#pragma unroll 1  // the registers of one step at a time
    for (int64_t part = lane(); part < num_parts; part += kWarp)
      moments = merge(moments, parts[part * a.latents].of(warp));
    for (int offset = kWarp / 2; offset > 0; offset /= 2) moments = merge(moments, shuffle_down(moments, offset));
    if (lane() == 0) store(a, index, warp, moments);
  } else if (warp == LatentMoments::kVariables) {
    double count = 0, minimum = ExpTraits<double>::kInfinity, maximum = -minimum;
    int64_t infinite = 0;
    for (int64_t part = lane(); part < num_parts; part += kWarp) {
      const LatentMoments& moments = parts[part * a.latents];
      count += moments.count;
      infinite += moments.infinite;
      minimum = fmin(minimum, moments.minimum);
      maximum = fmax(maximum, moments.maximum);
    }
    minimum = warp_reduce(minimum, [](double a, double b) { return fmin(a, b); });
    maximum = warp_reduce(maximum, [](double a, double b) { return fmax(a, b); });
    count = warp_sum(count);
    infinite = warp_sum(infinite);
    if (lane() == 0) store(a, index, count, infinite, minimum, maximum);
  }
}

}  // namespace cuda

template <class T>
void collapse_statistics(Cuda device, const CollapseStatistics<T>& a) {
  using namespace cuda;
  const int64_t tiles = (a.latents + kTile - 1) / kTile;
  launch(&cell_table_kernel<accumulate_t<T>>, blocks(1), kThreads, device, a.threshold, a.thresholds, a.with_histogram,
         a.table);
  launch(a.with_histogram ? &collapse_statistics_kernel<T, true> : &collapse_statistics_kernel<T, false>,
         blocks(a.models * tiles * num_row_parts(a.rows)), kTileThreads, shared_bytes(a), device, a);
  launch(&latent_results_kernel<T>, blocks(a.models * a.latents), kThreads, device, a);
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, collapse_statistics, CollapseStatistics)

}  // namespace lineavae
