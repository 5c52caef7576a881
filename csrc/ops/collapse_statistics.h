// Statistics of the KL of each latent over N posteriors: what tells whether it is collapsed at any threshold.
//
// KL_nk is the value of gaussian_kl_per_dimension. An infinite KL is above every ε. One that is NaN is unknown: its
// element is counted as such and left out of everything else. Per model and latent:
//
//   counts      of KL < ε for each threshold ε > 0, of KL <= 0 for ε = 0; exact, against thresholds in double
//   histogram   of KL; its bins are the exponent and the leading four bits of the mantissa, from 2⁻²⁴ to 2¹⁶
//   moments     n, then mean and Σ (x - mean)² for x = KL, m and v = eᵗ, in double; infinite where an x is
//   minimum, maximum
//   infinite    how many KLs are infinite
//   nan         how many are NaN
//
// How it is counted. A KL is not negative, so values compare as their bits do. The bins are refined by the thresholds
// into cells: a threshold within a bin splits it in two, and one table lookup per element gives the cell of its bits,
// whatever the number of thresholds. A threshold that shares its bin with an earlier one, or lies outside the bins, is
// compared with every element instead, and has a counter of its own; so are all of them where they are few and there is
// no histogram. Counts and histogram are sums of cells. A NaN is in the last bin, until it is taken out of the result.
//
// How it is summed. Rows are cut into parts that depend on the shape alone. Sums are of differences from the first
// value, as few in float as there are rows in flight, and then in double; where they are not finite the rows are summed
// again, one by one and in double. Parts are merged in order. So the result does not depend on how they are divided
// among threads.
//
// Launches: 1, and an array filled with zeros, for some thousand latents.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"
#include "ops/gaussian_kl.h"

namespace lineavae {

constexpr int kHistogramBins = 642;
constexpr int kMaxThresholds = 64;

// The moments of one variable: its number, mean and squared deviations.
struct VariableMoments {
  double count, mean, squares;
};

// The moments and extremes of a latent over some rows, those of a KL that is NaN left out.
struct LatentMoments {
  static constexpr int kVariables = 3;  // KL, m, v
  double count;
  int64_t infinite;
  double mean[kVariables];
  double squares[kVariables];
  double minimum, maximum;

  LINEAVAE_HOST_DEVICE VariableMoments of(int variable) const { return {count, mean[variable], squares[variable]}; }
  LINEAVAE_HOST_DEVICE void set(int variable, const VariableMoments& moments) {
    mean[variable] = moments.mean;
    squares[variable] = moments.squares;
  }
};

constexpr int kMoments = 1 + 2 * LatentMoments::kVariables;  // that a latent has in the result

LINEAVAE_HOST_DEVICE LatentMoments no_moments() {
  return {0, 0, {0, 0, 0}, {0, 0, 0}, ExpTraits<double>::kInfinity, -ExpTraits<double>::kInfinity};
}

LINEAVAE_HOST_DEVICE bool is_finite(double x) { return x - x == 0; }

// What sums are relative to. Those of float are of unit * (x - shift), which is near 1 where x is not much larger than
// the shift: then no square is too small.
template <class A>
struct Origin {
  A unit, minus_shift;  // the second in units

  LINEAVAE_HOST_DEVICE static Origin at(A shift) {
    const A unit = unit_of(shift);
    return {unit, -shift * unit};
  }
  LINEAVAE_HOST_DEVICE A of(A x) const { return multiply_add(x, unit, minus_shift); }

  // The moments of `count` x, from the sums of these and of their squares.
  LINEAVAE_HOST_DEVICE VariableMoments moments(double count, double sum, double squares) const {
    const double mean = sum / count, deviations = squares - sum * mean;
    const double bounded = !is_finite(squares) ? squares : deviations > 0 ? deviations : 0;
    const double from_unit = 1.0 / unit;
    return {count, (mean - minus_shift) * from_unit, bounded * from_unit * from_unit};
  }

 private:
  LINEAVAE_HOST_DEVICE static double unit_of(double) { return 1; }
  LINEAVAE_HOST_DEVICE static float unit_of(float shift) {
    if (shift == 0) return 4294967296.0f;  // 2³²: good for most numbers
    constexpr uint32_t kExponent = 255u << 23, kLargest = 254u << 23, kLeast = 1u << 23;
    const uint32_t exponent = bit_cast<uint32_t>(shift) & kExponent;
    return bit_cast<float>(exponent < kLargest ? kLargest - exponent : kLeast);
  }
};

// Chan, Golub and LeVeque (1983). Where a mean is infinite so is the merged one, and the squares.
LINEAVAE_HOST_DEVICE VariableMoments merge(const VariableMoments& a, const VariableMoments& b) {
  const double count = a.count + b.count, share = count > 0 ? b.count / count : 0, gap = b.mean - a.mean;
  if (is_finite(gap)) return {count, a.mean + share * gap, a.squares + b.squares + gap * (share * a.count) * gap};
  return {count, (1 - share) * a.mean + share * b.mean, ExpTraits<double>::kInfinity};
}

LINEAVAE_HOST_DEVICE LatentMoments merge(const LatentMoments& a, const LatentMoments& b) {
  LatentMoments merged;
  merged.count = a.count + b.count;
  merged.infinite = a.infinite + b.infinite;
  for (int i = 0; i < LatentMoments::kVariables; ++i) merged.set(i, merge(a.of(i), b.of(i)));
  merged.minimum = a.minimum < b.minimum ? a.minimum : b.minimum;
  merged.maximum = a.maximum > b.maximum ? a.maximum : b.maximum;
  return merged;
}

// The bits of a KL and the bin that they belong to.
template <class A>
struct Bins {
  using Traits = ExpTraits<A>;
  using Bits = std::make_unsigned_t<typename Traits::Integer>;
  static constexpr int kLowBits = Traits::kMantissaBits - 4;  // those within a bin
  static constexpr Bits kLowMask = (Bits{1} << kLowBits) - 1;
  static constexpr Bits kNoSplit = kLowMask + 1;                    // larger than all low bits
  static constexpr int kFirst = (Traits::kExponentBias - 24) << 4;  // the leading bits of 2⁻²⁴
  static constexpr Bits kInfinity = Bits{2 * Traits::kExponentBias + 1} << Traits::kMantissaBits;

  LINEAVAE_HOST_DEVICE static Bits bits_of(A kl) { return bit_cast<Bits>(kl); }
  LINEAVAE_HOST_DEVICE static bool is_nan(Bits bits) { return bits > kInfinity; }
  LINEAVAE_HOST_DEVICE static int bin_of(Bits bits) {
    const int bin = static_cast<int>(bits >> kLowBits) - (kFirst - 1);
    return bin < 0 ? 0 : bin >= kHistogramBins ? kHistogramBins - 1 : bin;
  }
  // The smallest bits of a KL that does not count as below the threshold.
  LINEAVAE_HOST_DEVICE static Bits bound(double threshold) {
    if (!(threshold >= 0)) return 0;
    const A nearest = static_cast<A>(threshold);
    return bits_of(nearest) + (threshold == 0 || static_cast<double>(nearest) < threshold ? 1 : 0);
  }
};

// At which ε to count: numbers, which travel with the call, or where they lie on the device.
struct Thresholds {
  int count;
  const double* in_memory;  // (count), or null
  double number[kMaxThresholds];

  LINEAVAE_HOST_DEVICE double operator[](int i) const { return in_memory != nullptr ? in_memory[i] : number[i]; }
};

// A threshold: the smallest bits of a KL that is not below it, and the bin that it splits, or kNone.
template <class A>
struct Threshold {
  static constexpr int kNone = kHistogramBins;
  typename Bins<A>::Bits bound;
  int bin;
};

// Cells: those of the bins in order, and at the end, from the last one backwards, one for each threshold that splits no
// bin.
template <class A>
struct CellTable {
  using Bits = typename Bins<A>::Bits;
  Bits bins[kHistogramBins];      // how many splits are before the bin, then the low bits at which it is itself split
  Bits compared[kMaxThresholds];  // the bounds of thresholds that split no bin
  int num_compared;
  int below[kMaxThresholds];  // of each threshold the number of cells below it, or -1 - its index among the compared
};

// So few thresholds are all compared where there is no histogram.
constexpr int kMostCompared = 4;

LINEAVAE_HOST_DEVICE int num_cells(bool with_bins, int thresholds) {
  return (with_bins ? kHistogramBins : 0) + thresholds;
}

// A table is filled in four steps, each for all of its indices before the next: bounds, bins that are split, the
// table's bins, and its thresholds.
template <class A>
LINEAVAE_HOST_DEVICE int split_bin(const Threshold<A>* thresholds, int index) {
  using B = Bins<A>;
  const int bin = B::bin_of(thresholds[index].bound);
  bool splits = bin > 0 && bin < kHistogramBins - 1;
  for (int i = 0; i < index; ++i) splits = splits && B::bin_of(thresholds[i].bound) != bin;
  return splits ? bin : Threshold<A>::kNone;
}

template <class A>
LINEAVAE_HOST_DEVICE int splits_before(const Threshold<A>* thresholds, int count, int bin) {
  int splits = 0;
  for (int i = 0; i < count; ++i) splits += thresholds[i].bin < bin;
  return splits;
}

template <class A>
LINEAVAE_HOST_DEVICE int count_compared(const Threshold<A>* thresholds, int count) {
  int compared = 0;
  for (int i = 0; i < count; ++i) compared += thresholds[i].bin == Threshold<A>::kNone;
  return compared;
}

template <class A>
LINEAVAE_HOST_DEVICE void fill_bin(CellTable<A>& table, const Threshold<A>* thresholds, int count, int bin) {
  using B = Bins<A>;
  const int splits = splits_before(thresholds, count, bin);
  table.bins[bin] = static_cast<typename B::Bits>(splits) << (B::kLowBits + 1) | B::kNoSplit;
}

template <class A>
LINEAVAE_HOST_DEVICE void fill_threshold(CellTable<A>& table, const Threshold<A>* thresholds, int count, int index) {
  using B = Bins<A>;
  const Threshold<A> threshold = thresholds[index];
  if (threshold.bin == Threshold<A>::kNone) {
    const int compared = count_compared(thresholds, index);
    table.compared[compared] = threshold.bound;
    table.below[index] = -1 - compared;
  } else {
    table.bins[threshold.bin] ^= B::kNoSplit | (threshold.bound & B::kLowMask);
    table.below[index] = threshold.bin + splits_before(thresholds, count, threshold.bin) + 1;
  }
}

// The first cell of a bin, given its entry in the table; the second, if it is split, follows.
template <class A>
LINEAVAE_HOST_DEVICE int first_cell(int bin, typename Bins<A>::Bits entry) {
  return bin + static_cast<int>(entry >> (Bins<A>::kLowBits + 1));
}

// The cell of a KL; that of NaN is the last bin's.
template <class A>
LINEAVAE_HOST_DEVICE int cell_of(typename Bins<A>::Bits bits, const CellTable<A>& table) {
  using B = Bins<A>;
  const int bin = B::bin_of(bits);
  const auto entry = table.bins[bin];
  return first_cell<A>(bin, entry) + ((bits & B::kLowMask) >= (entry & (B::kNoSplit | B::kLowMask)) ? 1 : 0);
}

// Rows are cut into parts: so many that there is work for every multiprocessor, so few that they need little memory,
// long enough for their counters to be worth adding up, and not so long that a first value far from all others costs
// the sums their digits.
LINEAVAE_HOST_DEVICE int64_t rows_per_part(int64_t rows, int64_t latents) {
  constexpr int64_t kFewest = 256, kMost = 16384, kMultiple = 128, kTiles = 384, kTile = 16;
  const int64_t tiles = (latents + kTile - 1) / kTile, parts = tiles < kTiles ? kTiles / (tiles < 1 ? 1 : tiles) : 1;
  const int64_t enough = ((rows + parts - 1) / parts + kMultiple - 1) / kMultiple * kMultiple;
  return enough < kFewest ? kFewest : enough > kMost ? kMost : enough;
}

// One part where there are no rows.
LINEAVAE_HOST_DEVICE int64_t num_row_parts(int64_t rows, int64_t part_rows) {
  return rows > 0 ? (rows + part_rows - 1) / part_rows : 1;
}

// Everything contiguous, but mean and logvar may have more columns than these latents; then there is one model.
template <class T>
struct CollapseStatistics {
  int64_t models, rows, latents, row_stride;
  int64_t part_rows;  // rows_per_part
  int64_t num_parts;  // num_row_parts
  bool with_histogram;
  Thresholds thresholds;
  const T* mean;    // (models, rows, latents), a row every row_stride
  const T* logvar;  // (models, rows, latents), likewise
  // work space
  LatentMoments* parts;  // (models, num_parts, latents)
  int64_t* cells;        // (models, latents, num_cells), then the tickets
  // results
  int64_t* counts;     // (models, latents, thresholds)
  int64_t* histogram;  // (models, latents, 642), or nothing
  double* moments;     // (models, latents, 7)
  double* minimum;     // (models, latents)
  double* maximum;     // (models, latents)
  int64_t* infinite;   // (models, latents)
  int64_t* nan;        // (models, latents)

  // `count` of these latents, from `first` on, of some models; with the work space of all.
  CollapseStatistics some(int64_t first_model, int64_t num_models, int64_t first, int64_t count) const {
    CollapseStatistics a = *this;
    const int64_t from = first_model * rows * row_stride + first, to = first_model * latents + first;
    a.models = num_models;
    a.latents = count;
    a.mean += from;
    a.logvar += from;
    a.counts += to * thresholds.count;
    a.histogram += with_histogram ? to * kHistogramBins : 0;
    a.moments += to * kMoments;
    a.minimum += to;
    a.maximum += to;
    a.infinite += to;
    a.nan += to;
    return a;
  }

  LINEAVAE_HOST_DEVICE bool with_bins() const { return with_histogram || thresholds.count > kMostCompared; }
  LINEAVAE_HOST_DEVICE int num_cells() const { return lineavae::num_cells(with_bins(), thresholds.count); }
  // How many blocks have come, for CUDA: (models, latents)
  LINEAVAE_HOST_DEVICE int64_t* tickets() const { return cells + models * latents * num_cells(); }
  LINEAVAE_HOST_DEVICE int64_t part_end(int64_t part) const {
    return (part + 1) * part_rows < rows ? (part + 1) * part_rows : rows;
  }
};

// The moments of `rows` elements, one every `stride`: for those among which one is not finite or very large.
template <class T>
LINEAVAE_HOST_DEVICE LatentMoments careful_moments(const T* mean, const T* logvar, int64_t rows, int64_t stride) {
  using A = accumulate_t<T>;
  constexpr int kVariables = LatentMoments::kVariables;
  LatentMoments moments = no_moments();
  Origin<double> origin[kVariables];
  double sum[kVariables] = {}, squares[kVariables] = {};
#ifdef __CUDACC__
#pragma unroll 1
#endif
  for (int64_t row = 0; row < rows; ++row) {
    const A m = load(mean[row * stride]), t = load(logvar[row * stride]), kl = gaussian_kl_element(m, t);
    if (Bins<A>::is_nan(Bins<A>::bits_of(kl))) continue;
    const double value[kVariables] = {kl, m, exponential(t)};
    for (int i = 0; i < kVariables; ++i) {
      if (moments.count == 0) origin[i] = Origin<double>::at(is_finite(value[i] * value[i]) ? value[i] : 0);
      const double x = origin[i].of(value[i]);
      sum[i] += x;
      squares[i] += x * x;
    }
    ++moments.count;
    moments.infinite += kl == ExpTraits<A>::kInfinity;
    moments.minimum = kl < moments.minimum ? kl : moments.minimum;
    moments.maximum = kl > moments.maximum ? kl : moments.maximum;
  }
  for (int i = 0; i < kVariables && moments.count > 0; ++i)
    moments.set(i, origin[i].moments(moments.count, sum[i], squares[i]));
  return moments;
}

// The results of latent `index` of all models that come from its moments.
template <class T>
LINEAVAE_HOST_DEVICE void store(const CollapseStatistics<T>& a, int64_t index, const LatentMoments& moments) {
  double* out = a.moments + index * kMoments;
  out[0] = moments.count;
  for (int i = 0; i < LatentMoments::kVariables; ++i) {
    out[1 + 2 * i] = moments.mean[i];
    out[2 + 2 * i] = moments.squares[i];
  }
  a.minimum[index] = moments.minimum;
  a.maximum[index] = moments.maximum;
  a.infinite[index] = moments.infinite;
  a.nan[index] = a.rows - static_cast<int64_t>(moments.count);
}

// Those of bin `bin`, given how many KLs are in the cells before each cell; nan is a result already.
template <class T>
LINEAVAE_HOST_DEVICE void store_bin(const CollapseStatistics<T>& a, int64_t index, int bin,
                                    const CellTable<accumulate_t<T>>& table, const int64_t* before) {
  using A = accumulate_t<T>;
  const bool is_last = bin == kHistogramBins - 1;
  const int first = first_cell<A>(bin, table.bins[bin]),
            next = is_last ? first + 1 : first_cell<A>(bin + 1, table.bins[bin + 1]);
  a.histogram[index * kHistogramBins + bin] = before[next] - before[first] - (is_last ? a.nan[index] : 0);
}

// Those of a threshold, likewise.
template <class T>
LINEAVAE_HOST_DEVICE void store_count(const CollapseStatistics<T>& a, int64_t index, int threshold,
                                      const CellTable<accumulate_t<T>>& table, const int64_t* before) {
  const int below = table.below[threshold], cells = a.num_cells();
  // of those that split no bin the cell is one of the last
  const int64_t count = below < 0 ? before[cells + below + 1] - before[cells + below] : before[below];
  a.counts[index * a.thresholds.count + threshold] = count;
}

LINEAVAE_KERNEL(collapse_statistics, CollapseStatistics)
}  // namespace lineavae
