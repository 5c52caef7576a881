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
// compared with every element instead, and has a counter of its own. Counts and histogram are sums of cells.
//
// Rows are cut into parts that depend on the shape alone. Each part has moments of its own, relative to one of its
// values; they are merged in order. So the result does not depend on how the parts are divided among threads.
//
// Launches: 3, and an array filled with zeros, for some thousand latents.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"

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
};

constexpr int kMoments = 1 + 2 * LatentMoments::kVariables;  // that a latent has in the result

LINEAVAE_HOST_DEVICE LatentMoments no_moments() {
  return {0, 0, {0, 0, 0}, {0, 0, 0}, ExpTraits<double>::kInfinity, -ExpTraits<double>::kInfinity};
}

LINEAVAE_HOST_DEVICE bool is_finite(double x) { return x - x == 0; }

// What sums are relative to: the first value, but zero where its square overflows.
template <class A>
LINEAVAE_HOST_DEVICE A shift_of(A first) {
  return first * first < ExpTraits<A>::kInfinity ? first : 0;
}

// The moments of one variable, from the sums of x - shift and of its square.
LINEAVAE_HOST_DEVICE void set_moments(LatentMoments& moments, int variable, double shift, double sum, double squares) {
  const double mean = sum / moments.count;
  moments.mean[variable] = shift + mean;
  const double deviations = squares - sum * mean;
  moments.squares[variable] = !is_finite(squares) ? squares : deviations > 0 ? deviations : 0;
}

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
  for (int i = 0; i < LatentMoments::kVariables; ++i) {
    const VariableMoments of_variable = merge(a.of(i), b.of(i));
    merged.mean[i] = of_variable.mean;
    merged.squares[i] = of_variable.squares;
  }
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

// A threshold: the smallest bits of a KL that is not below it, and the bin that it splits, or kNone.
template <class A>
struct Threshold {
  static constexpr int kNone = -1;
  typename Bins<A>::Bits bound;
  int bin;
};

template <class A>
LINEAVAE_HOST_DEVICE Threshold<A> place(const double* thresholds, int index, bool with_histogram) {
  using B = Bins<A>;
  const auto bound = B::bound(thresholds[index]);
  const int bin = B::bin_of(bound);
  bool splits = with_histogram && bin > 0 && bin < kHistogramBins - 1;
  for (int i = 0; i < index; ++i) splits = splits && B::bin_of(B::bound(thresholds[i])) != bin;
  return {bound, splits ? bin : Threshold<A>::kNone};
}

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

LINEAVAE_HOST_DEVICE int num_cells(bool with_histogram, int thresholds) {
  return (with_histogram ? kHistogramBins : 0) + thresholds;
}

template <class A>
LINEAVAE_HOST_DEVICE int splits_before(const Threshold<A>* thresholds, int count, int bin) {
  int splits = 0;
  for (int i = 0; i < count; ++i) splits += thresholds[i].bin != Threshold<A>::kNone && thresholds[i].bin < bin;
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
  auto split = B::kNoSplit;
  for (int i = 0; i < count; ++i)
    if (thresholds[i].bin == bin) split = thresholds[i].bound & B::kLowMask;
  table.bins[bin] = static_cast<typename B::Bits>(splits_before(thresholds, count, bin)) << (B::kLowBits + 1) | split;
}

template <class A>
LINEAVAE_HOST_DEVICE void fill_threshold(CellTable<A>& table, const Threshold<A>* thresholds, int count, int index) {
  const int compared = count_compared(thresholds, index);
  const Threshold<A> threshold = thresholds[index];
  const bool splits = threshold.bin != Threshold<A>::kNone;
  if (!splits) table.compared[compared] = threshold.bound;
  table.below[index] = splits ? threshold.bin + splits_before(thresholds, count, threshold.bin) + 1 : -1 - compared;
}

// The first cell of a bin, given its entry in the table; the second, if it is split, follows.
template <class A>
LINEAVAE_HOST_DEVICE int first_cell(int bin, typename Bins<A>::Bits entry) {
  return bin + static_cast<int>(entry >> (Bins<A>::kLowBits + 1));
}
template <class A>
LINEAVAE_HOST_DEVICE bool is_split(typename Bins<A>::Bits entry) {
  return (entry & Bins<A>::kNoSplit) == 0;
}

// The cell of a KL that is not NaN.
template <class A>
LINEAVAE_HOST_DEVICE int cell_of(typename Bins<A>::Bits bits, const CellTable<A>& table) {
  using B = Bins<A>;
  const int bin = B::bin_of(bits);
  const auto entry = table.bins[bin];
  return first_cell<A>(bin, entry) + ((bits & B::kLowMask) >= (entry & (B::kNoSplit | B::kLowMask)) ? 1 : 0);
}

// Rows are cut into parts: so many that there is work for every thread, so few that they need little memory, and long
// enough for their counters to be worth adding up.
constexpr int64_t kBlockRows = 256;
LINEAVAE_HOST_DEVICE int64_t rows_per_part(int64_t rows) {
  constexpr int64_t kMostParts = 512, kFewestRows = 4 * kBlockRows;
  const int64_t blocks = (rows + kMostParts * kBlockRows - 1) / (kMostParts * kBlockRows);
  return blocks * kBlockRows < kFewestRows ? kFewestRows : blocks * kBlockRows;
}
LINEAVAE_HOST_DEVICE int64_t num_row_parts(int64_t rows) {
  return (rows + rows_per_part(rows) - 1) / rows_per_part(rows);
}

// Everything contiguous, but mean and logvar may have more columns than these latents; then there is one model.
template <class T>
struct CollapseStatistics {
  int64_t models, rows, latents, row_stride;
  int thresholds;
  bool with_histogram;
  const T* mean;            // (models, rows, latents), a row every row_stride
  const T* logvar;          // (models, rows, latents), likewise
  const double* threshold;  // (thresholds)
  // work space
  CellTable<accumulate_t<T>>* table;  // one
  int64_t* cells;                     // (models, latents, num_cells), zeros
  LatentMoments* parts;               // (models, num_row_parts, latents)
  // results
  int64_t* counts;     // (models, latents, thresholds)
  int64_t* histogram;  // (models, latents, 642), or nothing
  double* moments;     // (models, latents, 7)
  double* minimum;     // (models, latents)
  double* maximum;     // (models, latents)
  int64_t* infinite;   // (models, latents)
  int64_t* nan;        // (models, latents)
};

// The results of latent `index` of all models that come from its moments: of one variable, and the others.
template <class T>
LINEAVAE_HOST_DEVICE void store(const CollapseStatistics<T>& a, int64_t index, int variable,
                                const VariableMoments& moments) {
  double* out = a.moments + index * kMoments;
  out[1 + 2 * variable] = moments.mean;
  out[2 + 2 * variable] = moments.squares;
}
template <class T>
LINEAVAE_HOST_DEVICE void store(const CollapseStatistics<T>& a, int64_t index, double count, int64_t infinite,
                                double minimum, double maximum) {
  a.moments[index * kMoments] = count;
  a.minimum[index] = minimum;
  a.maximum[index] = maximum;
  a.infinite[index] = infinite;
  a.nan[index] = a.rows - static_cast<int64_t>(count);
}

LINEAVAE_KERNEL(collapse_statistics, CollapseStatistics)
}  // namespace lineavae
