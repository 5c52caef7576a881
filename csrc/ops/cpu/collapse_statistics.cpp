// A task takes some parts of the rows of a tile of columns, and streams row after row, in vectorised loops: one for the
// KL and the variance, one for the moments of a few rows at a time, one for the cells. Counters of cells are
// incremented one by one, in 16 bits so that they stay in the cache, and added to the result at the end.
#include "ops/collapse_statistics.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "common/cpu.h"
#include "ops/gaussian_kl.h"

namespace lineavae {
namespace {

constexpr int kTile = 256;  // columns
constexpr int kGroup = 8;   // rows whose moments are added at once: fewer loads and stores of the sums
constexpr int kPad = 16;    // loops over columns go on to a multiple of this, so that none is left to a scalar loop

// What is known of one block of rows of a tile, and scratch space.
template <class A>
struct Block {
  using Bits = typename Bins<A>::Bits;
  static constexpr int kVariables = LatentMoments::kVariables;
  alignas(64) A value[kVariables][kGroup * kTile + kPad];  // KL, m and v of a group, row after row
  alignas(64) uint16_t cell[kTile];
  // sums over the block of x - shift and its square
  bool has_shift[kTile];
  alignas(64) double shift[kVariables][kTile];
  alignas(64) double sum[kVariables][kTile];
  alignas(64) double squares[kVariables][kTile];
  alignas(64) A minimum[kTile], maximum[kTile];
  alignas(64) int32_t infinite[kTile], nan[kTile];
  alignas(64) int32_t compared[kMaxThresholds][kTile];
};

template <class A>
LINEAVAE_INLINE bool is_nan(A kl) {
  return Bins<A>::is_nan(Bins<A>::bits_of(kl));
}

// KL, m and v of `count` elements, from element `begin` of the group on; returns whether all KLs are finite.
template <class T>
LINEAVAE_INLINE bool evaluate(const T* mean, const T* logvar, int count, int begin, Block<accumulate_t<T>>& block) {
  using A = accumulate_t<T>;
  A *kl = block.value[0] + begin, *m = block.value[1] + begin, *v = block.value[2] + begin;
  typename Bins<A>::Bits largest = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < count; ++i) {
    const A mu = load(mean[i]), t = load(logvar[i]);
    const A divergence = gaussian_kl_element(mu, t);
    kl[i] = divergence;
    m[i] = mu;
    v[i] = exponential(t);
    const auto bits = Bins<A>::bits_of(divergence);
    largest = bits > largest ? bits : largest;
  }
  return largest < Bins<A>::kInfinity;
}

// Adds the first kRows rows of the group to the moments and extremes. Where kCheck, some KLs are not finite.
template <int kRows, bool kCheck, class A>
LINEAVAE_INLINE void add_moments(int columns, Block<A>& block) {
  const int padded = (columns + kPad - 1) / kPad * kPad;
  const A* kl = block.value[0];
#pragma omp simd
  for (int j = 0; j < padded; ++j) {
    A minimum = block.minimum[j], maximum = block.maximum[j];
    for (int row = 0; row < kRows; ++row) {
      const A x = kl[row * columns + j];
      minimum = x < minimum ? x : minimum;
      maximum = x > maximum ? x : maximum;
      if (kCheck) {
        block.infinite[j] += Bins<A>::bits_of(x) == Bins<A>::kInfinity;
        block.nan[j] += is_nan(x);
      }
    }
    block.minimum[j] = minimum;
    block.maximum[j] = maximum;
  }
  for (int i = 0; i < LatentMoments::kVariables; ++i) {
    const A* value = block.value[i];
#pragma omp simd
    for (int j = 0; j < padded; ++j) {
      double sum = block.sum[i][j], squares = block.squares[i][j];
      for (int row = 0; row < kRows; ++row) {
        const bool counts = !kCheck || !is_nan(kl[row * columns + j]);
        const double x = counts ? value[row * columns + j] - block.shift[i][j] : 0;
        sum += x;
        squares += x * x;
      }
      block.sum[i][j] = sum;
      block.squares[i][j] = squares;
    }
  }
}

// Adds one row of the group to the counters, of which a column has `stride`: those of the cells, and of the compared
// thresholds.
template <bool kCheck, class A>
LINEAVAE_INLINE void add_counts(int columns, int row, const CellTable<A>& table, uint16_t* counters, int64_t stride,
                                Block<A>& block) {
  const int padded = (columns + kPad - 1) / kPad * kPad;
  const A* kl = block.value[0] + row * columns;
  if (counters != nullptr) {
#pragma omp simd
    for (int j = 0; j < padded; ++j) {
      block.cell[j] = static_cast<uint16_t>(cell_of<A>(Bins<A>::bits_of(kl[j]), table));
    }
    for (int j = 0; j < columns; ++j) {
      if (!kCheck || !is_nan(kl[j])) ++counters[j * stride + block.cell[j]];
    }
  }
  for (int e = 0; e < table.num_compared; ++e) {
    const auto bound = table.compared[e];
    int32_t* below = block.compared[e];
#pragma omp simd
    for (int j = 0; j < padded; ++j) below[j] += Bins<A>::bits_of(kl[j]) < bound;
  }
}

template <int kRows, bool kCheck, class A>
LINEAVAE_INLINE void add_group(int columns, const CellTable<A>& table, uint16_t* counters, int64_t stride,
                               Block<A>& block) {
  add_moments<kRows, kCheck>(columns, block);
  for (int row = 0; row < kRows; ++row) add_counts<kCheck>(columns, row, table, counters, stride, block);
}

// Forgets every earlier row.
template <class A>
LINEAVAE_INLINE void begin_block(int columns, Block<A>& block) {
  for (int j = 0; j < columns; ++j) {
    block.has_shift[j] = false;
    for (int i = 0; i < LatentMoments::kVariables; ++i) block.shift[i][j] = block.sum[i][j] = block.squares[i][j] = 0;
    block.minimum[j] = std::numeric_limits<A>::infinity();
    block.maximum[j] = -std::numeric_limits<A>::infinity();
    block.infinite[j] = block.nan[j] = 0;
  }
}

// Looks in the group for the shifts that are missing; returns whether none is any more.
template <class A>
LINEAVAE_INLINE bool find_shifts(int rows, int columns, Block<A>& block) {
  bool complete = true;
  for (int j = 0; j < columns; ++j) {
    for (int index = j; index < rows * columns && !block.has_shift[j]; index += columns) {
      if (is_nan(block.value[0][index])) continue;
      for (int i = 0; i < LatentMoments::kVariables; ++i) block.shift[i][j] = shift_of(block.value[i][index]);
      block.has_shift[j] = true;
    }
    complete &= block.has_shift[j];
  }
  return complete;
}

template <class A>
LINEAVAE_INLINE void end_block(int columns, int64_t rows, const Block<A>& block, LatentMoments* moments) {
  for (int j = 0; j < columns; ++j) {
    const double count = static_cast<double>(rows - block.nan[j]);
    if (count == 0) continue;
    LatentMoments of_block{count, block.infinite[j], {}, {}, block.minimum[j], block.maximum[j]};
    for (int i = 0; i < LatentMoments::kVariables; ++i)
      set_moments(of_block, i, block.shift[i][j], block.sum[i][j], block.squares[i][j]);
    moments[j] = merge(moments[j], of_block);
  }
}

// Some columns of one model.
struct Tile {
  int64_t model, first;
  int columns;
};

// What the rows of a tile are added to.
template <class T>
struct TileRows {
  const CollapseStatistics<T>& a;
  Tile tile;
  LatentMoments* moments;
  uint16_t* counters;  // of cells, or null
  Block<accumulate_t<T>>& block;
};

template <class T>
LINEAVAE_INLINE void add_rows_body(const TileRows<T>& to, int64_t first_row, int64_t last_row) {
  const CollapseStatistics<T>& a = to.a;
  const Tile tile = to.tile;
  uint16_t* const counters = to.counters;
  Block<accumulate_t<T>>& block = to.block;
  const int64_t stride = num_cells(a.with_histogram, a.thresholds);
  for (int64_t begin = first_row; begin < last_row; begin += kBlockRows) {
    const int64_t end = std::min(last_row, begin + kBlockRows);
    bool shifted = false;
    begin_block(tile.columns, block);
    for (int64_t row = begin; row < end;) {
      const int rows = end - row < kGroup ? 1 : kGroup;
      const int64_t offset = (tile.model * a.rows + row) * a.row_stride + tile.first;
      bool all_finite = true;
      if (tile.columns == a.row_stride) {  // the rows are one run
        all_finite = evaluate(a.mean + offset, a.logvar + offset, rows * tile.columns, 0, block);
      } else {
        for (int i = 0; i < rows; ++i) {
          const int64_t row_offset = offset + i * a.row_stride;
          all_finite &= evaluate(a.mean + row_offset, a.logvar + row_offset, tile.columns, i * tile.columns, block);
        }
      }
      if (!shifted) shifted = find_shifts(rows, tile.columns, block);
      if (!all_finite) {
        rows == 1 ? add_group<1, true>(tile.columns, *a.table, counters, stride, block)
                  : add_group<kGroup, true>(tile.columns, *a.table, counters, stride, block);
      } else {
        rows == 1 ? add_group<1, false>(tile.columns, *a.table, counters, stride, block)
                  : add_group<kGroup, false>(tile.columns, *a.table, counters, stride, block);
      }
      row += rows;
    }
    end_block(tile.columns, end - begin, block, to.moments);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_CLONE, add_rows, TileRows)

// What one task counts, until it adds that to the cells.
template <class T>
class Task {
 public:
  Task(const CollapseStatistics<T>& a, std::mutex& cells_mutex)
      : a_(a), cells_mutex_(cells_mutex), stride_(num_cells(a.with_histogram, a.thresholds)) {
    if (a.with_histogram) counters_.resize(std::min<int64_t>(kTile, a.latents) * stride_);
    for (int e = 0; e < a.table->num_compared; ++e) std::fill_n(block_->compared[e], kTile, 0);
  }
  ~Task() { add_to_cells(); }

  // Part of the rows, of the columns from `first` on.
  void run(int64_t model, int64_t first, int64_t part) {
    constexpr int64_t kMostRows = 65535 / kBlockRows * kBlockRows;  // that a counter can count
    const int64_t part_rows = rows_per_part(a_.rows), parts = num_row_parts(a_.rows);
    const int64_t part_end = std::min(a_.rows, (part + 1) * part_rows);
    const int columns = static_cast<int>(std::min<int64_t>(kTile, a_.latents - first));
    LatentMoments* moments = a_.parts + (model * parts + part) * a_.latents + first;
    std::fill_n(moments, columns, no_moments());
    for (int64_t begin = part * part_rows; begin < part_end; begin += kMostRows) {
      const int64_t end = std::min(part_end, begin + kMostRows);
      const bool same_columns = counted_.model == model && counted_.first == first;
      if (!same_columns || counted_rows_ + end - begin > kMostRows) add_to_cells();
      counted_ = {model, first, columns};
      counted_rows_ += end - begin;
      uint16_t* counters = a_.with_histogram ? counters_.data() : nullptr;
      add_rows_clone(TileRows<T>{a_, counted_, moments, counters, *block_}, begin, end);
    }
  }

 private:
  void add_to_cells() {
    int64_t* cells = a_.cells + (counted_.model * a_.latents + counted_.first) * stride_;
    const std::lock_guard lock(cells_mutex_);
    if (a_.with_histogram) {
      for (int64_t i = 0; i < counted_.columns * stride_; ++i) cells[i] += counters_[i];
      std::fill_n(counters_.begin(), counted_.columns * stride_, uint16_t{0});
    }
    for (int e = 0; e < a_.table->num_compared; ++e) {
      for (int j = 0; j < counted_.columns; ++j) cells[(j + 1) * stride_ - 1 - e] += block_->compared[e][j];
      std::fill_n(block_->compared[e], kTile, 0);  // the padding counts too
    }
    counted_rows_ = 0;
  }

  const CollapseStatistics<T>& a_;
  std::mutex& cells_mutex_;
  const int64_t stride_;
  Tile counted_{0, 0, 0};  // what the counters are of
  int64_t counted_rows_ = 0;
  std::vector<uint16_t> counters_;
  std::unique_ptr<Block<accumulate_t<T>>> block_ = std::make_unique<Block<accumulate_t<T>>>();
};

template <class A>
void fill(CellTable<A>& table, const double* thresholds, int count, bool with_histogram) {
  Threshold<A> placed[kMaxThresholds];
  for (int i = 0; i < count; ++i) placed[i] = place<A>(thresholds, i, with_histogram);
  table.num_compared = count_compared(placed, count);
  for (int i = 0; i < count; ++i) fill_threshold(table, placed, count, i);
  for (int bin = 0; bin < kHistogramBins; ++bin) fill_bin(table, placed, count, bin);
}

// The results of one latent of one model, from its cells and parts.
template <class T>
void finish(const CollapseStatistics<T>& a, int64_t index) {
  using A = accumulate_t<T>;
  const int cells_per_latent = num_cells(a.with_histogram, a.thresholds);
  const CellTable<A>& table = *a.table;
  const int64_t* cells = a.cells + index * cells_per_latent;
  for (int e = 0; e < a.thresholds; ++e) {
    const int below = table.below[e];
    a.counts[index * a.thresholds + e] =
        below < 0 ? cells[cells_per_latent + below] : std::accumulate(cells, cells + below, int64_t{0});
  }
  if (a.with_histogram) {
    for (int bin = 0; bin < kHistogramBins; ++bin) {
      const auto entry = table.bins[bin];
      const int64_t* cell = cells + first_cell<A>(bin, entry);
      a.histogram[index * kHistogramBins + bin] = cell[0] + (is_split<A>(entry) ? cell[1] : 0);
    }
  }
  const int64_t parts = num_row_parts(a.rows), model = index / a.latents, latent = index % a.latents;
  LatentMoments moments = no_moments();
  for (int64_t part = 0; part < parts; ++part)
    moments = merge(moments, a.parts[(model * parts + part) * a.latents + latent]);
  store(a, index, moments.count, moments.infinite, moments.minimum, moments.maximum);
  for (int i = 0; i < LatentMoments::kVariables; ++i) store(a, index, i, moments.of(i));
}

}  // namespace

template <class T>
void collapse_statistics(Cpu, const CollapseStatistics<T>& a) {
  fill(*a.table, a.threshold, a.thresholds, a.with_histogram);
  const int64_t parts = num_row_parts(a.rows), tiles = (a.latents + kTile - 1) / kTile;
  std::mutex cells_mutex;
  parallel_for(a.models * tiles * parts, rows_per_part(a.rows) * std::min<int64_t>(kTile, a.latents),
               [&](int64_t begin, int64_t end) {
                 Task<T> task(a, cells_mutex);
                 for (int64_t i = begin; i < end; ++i)
                   task.run(i / parts / tiles, i / parts % tiles * kTile, i % parts);
               });
  parallel_for(a.models * a.latents, num_cells(a.with_histogram, a.thresholds), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) finish(a, i);
  });
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cpu, collapse_statistics, CollapseStatistics)

}  // namespace lineavae
