#include "ops/cuda/collapse_statistics.cu"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t models, rows, latents, part_rows = kFewThreads ? 16 : 256;
};

// Tiles of fewer and more than 16 columns, and several, more than a block's warps; one part and several, the last of
// one row; rows left over from those that a thread has in flight.
const std::vector<Shape> kShapes = kTraceMemory ? std::vector<Shape>{{1, 64, 32}, {2, 40, 16}}
                                   : kFewThreads
                                       ? std::vector<Shape>{{2, 40, 9}}
                                       : std::vector<Shape>{{1, 0, 3},  {2, 5, 0},    {1, 1, 1},    {1, 700, 1},
                                                            {2, 37, 5}, {1, 300, 16}, {2, 130, 31}, {1, 2049, 2}};

// None, some that split bins, and some that cannot: two in one bin, the same twice, beyond all bins, zero, and those
// that a float only approximates. And as many as there may be. One half is the KL of some elements.
const std::vector<double> kEdges = {0.5, 0.01,    0.51, 0.01,  0.0,    1e-9, 1e6, 0.0625,
                                    2.5, 65536.0, 3e-8, 1e300, 5e-324, -1.0, NAN};
const std::vector<std::vector<double>> kThresholds = {
    {}, {0.01}, {0.5, 0.01, 0.51, 0.25} /* kMostCompared */, kEdges, std::vector<double>(kMaxThresholds, 0.01)};

// Every latent has a scale of its own; in one the KLs are the least that there are, in the order 2, 1, 3 in each
// thread. Some elements are not finite, in one latent all are NaN, in another infinite.
template <class T>
struct Posterior {
  std::vector<double> mean, logvar;
  Posterior(const Shape& s, bool finite)
      : mean(normal<T>(s.models * s.rows * s.latents)), logvar(normal<T>(s.models * s.rows * s.latents, 2.0)) {
    for (size_t i = 0; i < mean.size(); ++i) {
      const int64_t latent = i % s.latents, row = i / s.latents % s.rows;
      const double scale = std::exp2(-3.0 * (latent % 5));
      mean[i] = to_double(from_double<T>(mean[i] * scale));
      logvar[i] = to_double(from_double<T>(logvar[i] * scale));
      if (i % 17 == 9) mean[i] = 1, logvar[i] = 0;
      if (latent == 12) {
        constexpr double kOrder[] = {2, 1, 3};
        const double least = std::numeric_limits<accumulate_t<T>>::denorm_min();
        mean[i] = to_double(from_double<T>(std::sqrt(least) * std::sqrt(2 * kOrder[row / 16 % 3]))), logvar[i] = 0;
      }
      if (finite) continue;
      if (i % 7 == 3) mean[i] = NAN;
      if (i % 11 == 5) logvar[i] = i % 2 == 0 ? -INFINITY : INFINITY;
      if (i % 13 == 6) mean[i] = INFINITY;
      if (latent == 1) logvar[i] = NAN;
      if (latent == 4) mean[i] = INFINITY, logvar[i] = 0;
    }
  }
};

// The values of one model with columns behind them that are not its own.
std::vector<double> widened(const Shape& s, const std::vector<double>& values, int64_t row_stride) {
  if (row_stride == s.latents) return values;
  std::vector<double> wide(s.rows * row_stride, NAN);
  for (int64_t row = 0; row < s.rows; ++row)
    std::copy_n(values.begin() + row * s.latents, s.latents, wide.begin() + row * row_stride);
  return wide;
}

// What the definition says of one latent, from the values of its elements.
template <class T>
struct Expected {
  using A = accumulate_t<T>;
  std::vector<double> counts, histogram, moments, minimum, maximum, infinite, nan;

  Expected(const Shape& s, const Posterior<T>& posterior, const std::vector<double>& thresholds) {
    for (int64_t model = 0; model < s.models; ++model) {
      for (int64_t latent = 0; latent < s.latents; ++latent) {
        std::vector<double> values[3];
        for (int64_t row = 0; row < s.rows; ++row) {
          const int64_t i = (model * s.rows + row) * s.latents + latent;
          const A mean = static_cast<A>(posterior.mean[i]), logvar = static_cast<A>(posterior.logvar[i]);
          const double kl = gaussian_kl_element(mean, logvar);
          if (std::isnan(kl)) continue;
          values[0].push_back(kl);
          values[1].push_back(mean);
          values[2].push_back(std::exp(static_cast<double>(logvar)));
        }
        add(s.rows, values, thresholds);
      }
    }
  }

  void add(int64_t rows, const std::vector<double> (&values)[3], const std::vector<double>& thresholds) {
    const std::vector<double>& kl = values[0];
    for (const double e : thresholds)
      counts.push_back(std::count_if(kl.begin(), kl.end(), [=](double x) { return e == 0 ? x <= 0 : x < e; }));
    std::vector<double> bins(642);
    for (const double x : kl) {
      const double octave = x == INFINITY ? 1000 : x > 0 ? std::floor(std::log2(x)) : -1000;
      const double step = std::floor((x * std::exp2(-octave) - 1) * 16);
      ++bins[octave < -24 ? 0 : octave >= 16 ? 641 : static_cast<int>(1 + (octave + 24) * 16 + step)];
    }
    histogram.insert(histogram.end(), bins.begin(), bins.end());
    moments.push_back(kl.size());
    for (const std::vector<double>& value : values) {
      double mean = 0, squares = 0;
      for (const double x : value) mean += x / value.size();
      for (const double x : value) squares += (x - mean) * (x - mean);
      if (!std::isfinite(mean)) squares = INFINITY;
      moments.push_back(mean);
      moments.push_back(squares);
    }
    minimum.push_back(kl.empty() ? INFINITY : *std::min_element(kl.begin(), kl.end()));
    maximum.push_back(kl.empty() ? -INFINITY : *std::max_element(kl.begin(), kl.end()));
    infinite.push_back(std::count(kl.begin(), kl.end(), INFINITY));
    nan.push_back(rows - kl.size());
  }
};

template <class T>
void test_statistics(const Shape& s, bool finite, bool with_histogram, const std::vector<double>& thresholds,
                     int64_t other_columns = 0) {
  using A = accumulate_t<T>;
  const Posterior<T> posterior(s, finite);
  const Expected<T> expected(s, posterior, thresholds);
  const int64_t latents = s.models * s.latents, row_stride = s.latents + other_columns;
  const int E = static_cast<int>(thresholds.size());
  Case c(std::string("collapse_statistics ") + Scalar<T>::kName + " " + std::to_string(s.models) + "x" +
         std::to_string(s.rows) + "x" + std::to_string(s.latents) + " " + std::to_string(E) + " thresholds" +
         (finite ? "" : " not finite, in memory") + (with_histogram ? "" : " no histogram") +
         (other_columns == 0 ? "" : " among others"));
  const T* mean = c.input<T>("mean", widened(s, posterior.mean, row_stride));
  const T* logvar = c.input<T>("logvar", widened(s, posterior.logvar, row_stride));
  // numbers in the call, or in memory
  Thresholds given{E, nullptr, {}};
  if (finite) {
    std::copy(thresholds.begin(), thresholds.end(), given.number);
  } else {
    given.in_memory = c.input<double>("thresholds", thresholds);
  }
  int64_t* counts = c.output<int64_t>("counts", latents * E);
  int64_t* histogram = c.output<int64_t>("histogram", with_histogram ? latents * kHistogramBins : 0);
  double* moments = c.output<double>("moments", latents * 7);
  double *minimum = c.output<double>("minimum", latents), *maximum = c.output<double>("maximum", latents);
  int64_t *infinite = c.output<int64_t>("infinite", latents), *nan = c.output<int64_t>("nan", latents);
  CollapseStatistics<T> a{s.models,
                          s.rows,
                          s.latents,
                          row_stride,
                          s.part_rows,
                          num_row_parts(s.rows, s.part_rows),
                          with_histogram,
                          given,
                          mean,
                          logvar,
                          nullptr,
                          nullptr,
                          counts,
                          histogram,
                          moments,
                          minimum,
                          maximum,
                          infinite,
                          nan};
  a.parts = reinterpret_cast<LatentMoments*>(
      c.output<double>("parts", latents * a.num_parts * sizeof(LatentMoments) / sizeof(double)));
  a.cells = c.output<int64_t>("cells", latents * (a.num_cells() + 1));
  c.run([&] { collapse_statistics(Cuda{}, a); });
  c.expect(counts, expected.counts, 0);
  if (with_histogram) c.expect(histogram, expected.histogram, 0);
  // v is computed in float where the input is not double, and so are sums of a few rows, of squares too
  c.expect(moments, expected.moments, 2 * kTolerance<A>);
  c.expect(minimum, expected.minimum, 0);
  c.expect(maximum, expected.maximum, 0);
  c.expect(infinite, expected.infinite, 0);
  c.expect(nan, expected.nan, 0);
  // all but a few per cent of the memory that is touched; what is not finite is read again
  if (finite && other_columns == 0) c.expect_coalesced(mean, logvar);
}

template <class T>
void all_shapes() {
  for (const Shape& s : kShapes) {
    for (const std::vector<double>& thresholds : kThresholds) {
      if ((kFewThreads || kTraceMemory) && thresholds.size() != kEdges.size()) continue;
      test_statistics<T>(s, true, true, thresholds);
      test_statistics<T>(s, true, false, thresholds);
      test_statistics<T>(s, false, thresholds.empty(), thresholds);
    }
    if (s.models == 1) test_statistics<T>(s, false, true, kEdges, 3);
  }
}

void run_all() {
  all_shapes<float>();
  if (kFewThreads) return;
  test_statistics<float>({1, 70, 16, 2}, true, false, {0.01});  // more parts than a thread reads at once
  all_shapes<double>();
  all_shapes<Float16>();
  all_shapes<BFloat16>();
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
