// A task takes some parts of the rows of a tile of columns, and streams row after row, in vectorised loops: one for the
// KL and the variance, one for the moments of a few rows at a time, one for the cells. Counters of cells are
// incremented one by one, in 16 bits so that they stay in the cache, and added to the result at the end.
#include "ops/collapse_statistics.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "common/cpu.h"

namespace lineavae {
namespace {

constexpr int kTile = 256;  // columns
constexpr int kGroup = 8;   // rows whose moments are added at once, in the accumulation type
constexpr int kPad = 16;    // loops over columns go on to a multiple of this, so that none is left to a scalar loop
constexpr int64_t kBlockRows = 2048;  // whose sums have the same origin
constexpr int kVariables = LatentMoments::kVariables;

// What is known of one block of rows of a tile, and scratch space.
template <class A>
struct Block {
  using Bits = typename Bins<A>::Bits;
  alignas(64) A value[kVariables][kGroup * kTile + kPad];  // KL, m and v of a group, row after row
  alignas(64) uint16_t cell[kTile];
  // the columns' origins; sums over the block of what is relative to them, and of its square
  alignas(64) A unit[kVariables][kTile], minus_shift[kVariables][kTile];
  alignas(64) double sum[kVariables][kTile], squares[kVariables][kTile];
  alignas(64) A minimum[kTile], maximum[kTile];
  alignas(64) int32_t compared[kMaxThresholds][kTile];
};

// KL, m and v of `count` elements, from element `begin` of the group on.
template <class T>
LINEAVAE_INLINE void evaluate(const T* mean, const T* logvar, int count, int begin, Block<accumulate_t<T>>& block) {
  using A = accumulate_t<T>;
  A *kl = block.value[0] + begin, *m = block.value[1] + begin, *v = block.value[2] + begin;
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const A mu = load(mean[i]), t = load(logvar[i]);
    kl[i] = gaussian_kl_element(mu, t);
    m[i] = mu;
    v[i] = exponential(t);
  }
}

LINEAVAE_INLINE int padded(int columns) { return (columns + kPad - 1) / kPad * kPad; }

// Forgets every earlier row. The first one's values are the origins.
template <class A>
LINEAVAE_INLINE void begin_block(int columns, Block<A>& block) {
  for (int i = 0; i < kVariables; ++i) {
    for (int j = 0; j < padded(columns); ++j) {
      const Origin<A> origin = Origin<A>::at(block.value[i][j]);
      block.unit[i][j] = origin.unit;
      block.minus_shift[i][j] = origin.minus_shift;
      block.sum[i][j] = block.squares[i][j] = 0;
    }
  }
  std::fill_n(block.minimum, kTile, ExpTraits<A>::kInfinity);
  std::fill_n(block.maximum, kTile, -ExpTraits<A>::kInfinity);
}

// Adds the first kRows rows of the group to the moments and extremes.
template <int kRows, class A>
LINEAVAE_INLINE void add_moments(int columns, Block<A>& block) {
  const A* kl = block.value[0];
#pragma omp simd
  for (int j = 0; j < padded(columns); ++j) {
    A minimum = block.minimum[j], maximum = block.maximum[j];
    for (int row = 0; row < kRows; ++row) {
      const A x = kl[row * columns + j];
      minimum = x < minimum ? x : minimum;
      maximum = x > maximum ? x : maximum;
    }
    block.minimum[j] = minimum;
    block.maximum[j] = maximum;
  }
  for (int i = 0; i < kVariables; ++i) {
    const A* value = block.value[i];
#pragma omp simd
    for (int j = 0; j < padded(columns); ++j) {
      const Origin<A> origin{block.unit[i][j], block.minus_shift[i][j]};
      A sum = 0, squares = 0;
      for (int row = 0; row < kRows; ++row) {
        const A x = origin.of(value[row * columns + j]);
        sum += x;
        squares = multiply_add(x, x, squares);
      }
      block.sum[i][j] += sum;
      block.squares[i][j] += squares;
    }
  }
}

// Adds them to the counters, of which a column has `stride`: those of the cells, and of the compared thresholds.
template <int kRows, class A>
LINEAVAE_INLINE void add_counts(int columns, const CellTable<A>& table, uint16_t* counters, int64_t stride,
                                Block<A>& block) {
  const A* kl = block.value[0];
  for (int row = 0; row < kRows && counters != nullptr; ++row) {
#pragma omp simd
    for (int j = 0; j < padded(columns); ++j)
      block.cell[j] = static_cast<uint16_t>(cell_of<A>(Bins<A>::bits_of(kl[row * columns + j]), table));
    for (int j = 0; j < columns; ++j) ++counters[j * stride + block.cell[j]];
  }
  for (int e = 0; e < table.num_compared; ++e) {
    const auto bound = table.compared[e];
#pragma omp simd
    for (int j = 0; j < padded(columns); ++j) {
      int32_t below = 0;
      for (int row = 0; row < kRows; ++row) below += Bins<A>::bits_of(kl[row * columns + j]) < bound;
      block.compared[e][j] += below;
    }
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
  const CellTable<accumulate_t<T>>& table;
  Tile tile;
  LatentMoments* moments;
  uint16_t* counters;  // of cells, or null
  Block<accumulate_t<T>>& block;
};

template <class T>
void end_block(const TileRows<T>& to, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Block<A>& block = to.block;
  for (int j = 0; j < to.tile.columns; ++j) {
    LatentMoments moments{static_cast<double>(end - begin), 0, {}, {}, block.minimum[j], block.maximum[j]};
    bool finite = true;
    for (int i = 0; i < kVariables; ++i) {
      const Origin<A> origin{block.unit[i][j], block.minus_shift[i][j]};
      moments.set(i, origin.moments(moments.count, block.sum[i][j], block.squares[i][j]));
      finite &= is_finite(block.squares[i][j]);
    }
    if (!finite) {
      const int64_t offset = (to.tile.model * to.a.rows + begin) * to.a.row_stride + to.tile.first + j;
      moments = careful_moments(to.a.mean + offset, to.a.logvar + offset, end - begin, to.a.row_stride);
    }
    to.moments[j] = merge(to.moments[j], moments);
  }
}

template <class T>
LINEAVAE_INLINE void add_rows_body(const TileRows<T>& to, int64_t first_row, int64_t last_row) {
  const CollapseStatistics<T>& a = to.a;
  const Tile tile = to.tile;
  Block<accumulate_t<T>>& block = to.block;
  const int64_t stride = a.num_cells();
  for (int64_t begin = first_row; begin < last_row; begin += kBlockRows) {
    const int64_t end = std::min(last_row, begin + kBlockRows);
    for (int64_t row = begin; row < end;) {
      const int rows = end - row < kGroup ? 1 : kGroup;
      const int64_t offset = (tile.model * a.rows + row) * a.row_stride + tile.first;
      if (tile.columns == a.row_stride) {  // the rows are one run
        evaluate(a.mean + offset, a.logvar + offset, rows * tile.columns, 0, block);
      } else {
        for (int i = 0; i < rows; ++i) {
          const int64_t row_offset = offset + i * a.row_stride;
          evaluate(a.mean + row_offset, a.logvar + row_offset, tile.columns, i * tile.columns, block);
        }
      }
      if (row == begin) begin_block(tile.columns, block);
      if (rows == 1) {
        add_moments<1>(tile.columns, block);
        add_counts<1>(tile.columns, to.table, to.counters, stride, block);
      } else {
        add_moments<kGroup>(tile.columns, block);
        add_counts<kGroup>(tile.columns, to.table, to.counters, stride, block);
      }
      row += rows;
    }
    end_block(to, begin, end);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_CLONE, add_rows, TileRows)

// What one task counts, until it adds that to the cells.
template <class T>
class Task {
  using Table = CellTable<accumulate_t<T>>;

 public:
  Task(const CollapseStatistics<T>& a, const Table& table, std::mutex& cells_mutex)
      : a_(a), table_(table), cells_mutex_(cells_mutex), stride_(a.num_cells()) {
    if (a.with_bins()) counters_.resize(std::min<int64_t>(kTile, a.latents) * stride_);
    for (int e = 0; e < table.num_compared; ++e) std::fill_n(block_->compared[e], kTile, 0);
  }
  ~Task() { add_to_cells(); }

  // Part of the rows, of the columns from `first` on.
  void run(int64_t model, int64_t first, int64_t part) {
    constexpr int64_t kMostRows = 65535;  // that a counter can count
    const int64_t begin = part * a_.part_rows, end = a_.part_end(part);
    const int columns = static_cast<int>(std::min<int64_t>(kTile, a_.latents - first));
    LatentMoments* moments = a_.parts + (model * a_.num_parts + part) * a_.latents + first;
    std::fill_n(moments, columns, no_moments());
    const bool same_columns = counted_.model == model && counted_.first == first;
    if (!same_columns || counted_rows_ + end - begin > kMostRows) add_to_cells();
    counted_ = {model, first, columns};
    counted_rows_ += end - begin;
    uint16_t* counters = a_.with_bins() ? counters_.data() : nullptr;
    add_rows_clone(TileRows<T>{a_, table_, counted_, moments, counters, *block_}, begin, end);
  }

 private:
  void add_to_cells() {
    int64_t* cells = a_.cells + (counted_.model * a_.latents + counted_.first) * stride_;
    const std::lock_guard lock(cells_mutex_);
    if (a_.with_bins()) {
      for (int64_t i = 0; i < counted_.columns * stride_; ++i) cells[i] += counters_[i];
      std::fill_n(counters_.begin(), counted_.columns * stride_, uint16_t{0});
    }
    for (int e = 0; e < table_.num_compared; ++e) {
      for (int j = 0; j < counted_.columns; ++j) cells[(j + 1) * stride_ - 1 - e] += block_->compared[e][j];
      std::fill_n(block_->compared[e], kTile, 0);  // the padding counts too
    }
    counted_rows_ = 0;
  }

  const CollapseStatistics<T>& a_;
  const Table& table_;
  std::mutex& cells_mutex_;
  const int64_t stride_;
  Tile counted_{0, 0, 0};  // what the counters are of
  int64_t counted_rows_ = 0;
  std::vector<uint16_t> counters_;
  std::unique_ptr<Block<accumulate_t<T>>> block_ = std::make_unique<Block<accumulate_t<T>>>();
};

template <class A>
void fill(CellTable<A>& table, const Thresholds& thresholds, bool with_bins) {
  Threshold<A> placed[kMaxThresholds];
  const int count = thresholds.count;
  for (int i = 0; i < count; ++i) placed[i].bound = Bins<A>::bound(thresholds[i]);
  for (int i = 0; i < count; ++i) placed[i].bin = with_bins ? split_bin(placed, i) : Threshold<A>::kNone;
  for (int bin = 0; bin < kHistogramBins && with_bins; ++bin) fill_bin(table, placed, count, bin);
  for (int i = 0; i < count; ++i) fill_threshold(table, placed, count, i);
  table.num_compared = count_compared(placed, count);
}

// The results of one latent of one model, from its cells and parts.
template <class T>
void finish(const CollapseStatistics<T>& a, const CellTable<accumulate_t<T>>& table, int64_t index) {
  const int64_t model = index / a.latents, latent = index % a.latents;
  LatentMoments moments = no_moments();
  for (int64_t part = 0; part < a.num_parts; ++part)
    moments = merge(moments, a.parts[(model * a.num_parts + part) * a.latents + latent]);
  store(a, index, moments);
  const int cells = a.num_cells();
  int64_t before[kHistogramBins + kMaxThresholds + 1] = {0};
  for (int i = 0; i < cells; ++i) before[i + 1] = before[i] + a.cells[index * cells + i];
  for (int e = 0; e < a.thresholds.count; ++e) store_count(a, index, e, table, before);
  for (int bin = 0; bin < kHistogramBins && a.with_histogram; ++bin) store_bin(a, index, bin, table, before);
}

}  // namespace

template <class T>
void collapse_statistics(Cpu, const CollapseStatistics<T>& a) {
  CellTable<accumulate_t<T>> table;
  fill(table, a.thresholds, a.with_bins());
  std::fill_n(a.cells, a.models * a.latents * a.num_cells(), 0);
  const int64_t parts = a.num_parts, tiles = (a.latents + kTile - 1) / kTile;
  std::mutex cells_mutex;
  parallel_for(a.models * tiles * parts, a.part_rows * std::min<int64_t>(kTile, a.latents),
               [&](int64_t begin, int64_t end) {
                 Task<T> task(a, table, cells_mutex);
                 for (int64_t i = begin; i < end; ++i)
                   task.run(i / parts / tiles, i / parts % tiles * kTile, i % parts);
               });
  parallel_for(a.models * a.latents, a.num_cells(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) finish(a, table, i);
  });
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cpu, collapse_statistics, CollapseStatistics)

}  // namespace lineavae
