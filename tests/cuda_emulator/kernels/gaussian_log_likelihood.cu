#include "ops/cuda/gaussian_log_likelihood.cu"

#include <algorithm>
#include <cmath>

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t models, samples, features;
};

// Lengths below, at and beyond what a lane, a warp, a vector and a block take; several blocks, parts, tiles and slices.
const std::vector<Shape> kShapes =
    kTraceMemory  ? std::vector<Shape>{{1, 40, 64}, {1, 40, 200}, {1, 2, 4096}, {1, 2, 8192}}
    : kFewThreads ? std::vector<Shape>{{2, 5, 12}, {1, 9, 12}, {1, 1, 8192}}
                  : std::vector<Shape>{{1, 0, 5},    {1, 5, 0},    {1, 1, 1},    {1, 5, 1},  {2, 3, 7},
                                       {3, 13, 12},  {1, 3, 200},  {1, 300, 4},  {1, 57, 4}, {1, 2, 4096},
                                       {1, 2, 4099}, {2, 2, 8204}, {2, 17, 1028}};

// One variance in all, per model, per sample, per feature, per feature of each model, per element.
enum class Shared { kAll, kModel, kRow, kFeature, kFeatureOfModel, kElement };

Noise kind(Shared shared) {
  switch (shared) {
    case Shared::kFeature:
    case Shared::kFeatureOfModel:
      return Noise::kFeature;
    case Shared::kElement:
      return Noise::kElement;
    default:
      return Noise::kRow;
  }
}

// Where log σ² lies, and how large the data are: also where 1/σ², r² or their product is out of range.
struct Scale {
  double log_sigma2, data;
};
constexpr Scale kUsual{0.0, 1.0};
template <class T>
const std::vector<Scale> kExtreme =
    std::is_same_v<T, double>
        ? std::vector<Scale>{{-1000, 0}, {-1000, 1e-70}, {-20, 1e149}, {1000, 1e217}, {-1300, 1}}
        : std::vector<Scale>{{-90, 0}, {-100, 1e-4}, {-20, 3e14}, {100, 1e22}, {150, 1e33}, {-150, 1}};

template <class T>
struct Problem {
  Shape s;
  Noise noise;
  int64_t of_model, of_sample, noise_size, grad_size;  // grad_size: of σ², per model
  bool shared_x;
  std::vector<double> x, x_hat, log_sigma2, upstream;

  Problem(const Shape& shape, Shared shared, Scale scale) : s(shape), noise(kind(shared)), shared_x(shape.models > 1) {
    const int64_t row = shared == Shared::kElement ? s.features : 1;
    const bool samples = shared == Shared::kRow || shared == Shared::kElement;
    const int64_t whole = noise == Noise::kFeature ? s.features : samples ? s.samples * row : 1;
    of_sample = samples ? row : 0;
    of_model = shared == Shared::kAll || shared == Shared::kFeature ? 0 : whole;
    noise_size = of_model == 0 ? whole : s.models * whole;
    grad_size = s.models * whole;
    x = normal<T>((shared_x ? 1 : s.models) * s.samples * s.features, scale.data);
    x_hat = normal<T>(s.models * s.samples * s.features, scale.data, 0.5 * scale.data);
    log_sigma2 = normal<T>(noise_size, 0.7, scale.log_sigma2);
    upstream = normal<accumulate_t<T>>(s.models * s.samples);
  }

  // The kernels take features by stride 0 in rows of D, everything else by one number.
  double log_sigma2_at(int64_t row, int64_t i) const {
    return log_sigma2[row / s.samples * of_model + row % s.samples * of_sample + (noise == Noise::kRow ? 0 : i)];
  }
  double residual_at(int64_t row, int64_t i) const {
    return x[(shared_x ? row % s.samples : row) * s.features + i] - x_hat[row * s.features + i];
  }
  int64_t grad_index(int64_t row, int64_t i) const {
    const int64_t of_one = grad_size / s.models;
    return row / s.samples * of_one + row % s.samples * of_sample + (noise == Noise::kRow ? 0 : i);
  }
  int64_t rows() const { return s.models * s.samples; }
  int64_t size() const { return rows() * s.features; }
  int64_t parts() const { return gaussian_parts(Cuda{}, s.models, s.samples, s.features); }
};

template <class T>
GaussianData<T> data(Case& c, const Problem<T>& p, size_t offset) {
  const Shape& s = p.s;
  return {p.noise,
          s.models,
          s.samples,
          s.features,
          p.shared_x,
          p.of_model,
          p.of_sample,
          c.input<T>("x", p.x, offset),
          c.input<T>("x_hat", p.x_hat),
          c.input<T>("log_sigma2", p.log_sigma2)};
}

template <class T>
std::vector<long double> values(const Problem<T>& p, std::vector<double>* distortion = nullptr) {
  std::vector<long double> value(p.rows());
  for (int64_t row = 0; row < p.rows(); ++row) {
    long double q = 0, logs = 0;
    for (int64_t i = 0; i < p.s.features; ++i) {
      const long double log_sigma2 = p.log_sigma2_at(row, i), residual = p.residual_at(row, i);
      q += residual * residual * std::exp(-log_sigma2);
      logs += log_sigma2 + std::log(2 * M_PI);
    }
    value[row] = -(q + logs) / 2;
    if (distortion) (*distortion)[row] = static_cast<double>(q);
  }
  return value;
}

// The terms of the gradient of σ² cancel in part.
template <class T>
constexpr double kSumTolerance = std::max(kTolerance<T>, 16 * kTolerance<accumulate_t<T>>);

struct Expected {
  std::vector<long double> x_hat, log_sigma2;
};

template <class T>
Expected gradients(const Problem<T>& p, const std::vector<double>& upstream) {
  Expected e{std::vector<long double>(p.size()), std::vector<long double>(p.grad_size)};
  for (int64_t row = 0; row < p.rows(); ++row) {
    for (int64_t i = 0; i < p.s.features; ++i) {
      const long double log_sigma2 = p.log_sigma2_at(row, i), residual = p.residual_at(row, i);
      const long double precision = std::exp(-log_sigma2), of_noise = (residual * residual * precision - 1) / 2;
      e.x_hat[row * p.s.features + i] = upstream[row] * residual * precision;
      e.log_sigma2[p.grad_index(row, i)] += upstream[row] * of_noise;
    }
  }
  return e;
}

template <class T>
GaussianGradients<T> gradient_arrays(Case& c, const Problem<T>& p, size_t offset) {
  using A = accumulate_t<T>;
  const int64_t models = p.noise == Noise::kFeature ? p.s.models : 0;
  return {c.output<T>("grad_x_hat", p.size(), offset), c.output<T>("grad_log_sigma2", p.grad_size), p.parts(),
          c.output<A>("squares", models * p.parts() * p.s.features), c.output<A>("grad_sums", models * p.parts())};
}

GaussianWork work(Case& c, GaussianWorkSize size) {
  return {reinterpret_cast<GaussianSums*>(c.output<double>("parts", 2 * size.parts)),
          c.output<uint32_t>("tickets", size.tickets)};
}

template <class T>
std::string name(const char* kernel, const Shape& s, Shared shared, size_t offset, Scale scale) {
  constexpr const char* kNames[] = {"all", "model", "row", "feature", "feature of model", "element"};
  return std::string(kernel) + " " + Scalar<T>::kName + " " + std::to_string(s.models) + "x" +
         std::to_string(s.samples) + "x" + std::to_string(s.features) + " one σ² per " +
         kNames[static_cast<int>(shared)] + (offset ? " misaligned" : "") +
         (scale.data == 1 ? "" : " log σ² " + std::to_string(scale.log_sigma2));
}

template <class T>
void forward(const Shape& s, Shared shared, size_t offset, Scale scale) {
  using A = accumulate_t<T>;
  const Problem<T> p(s, shared, scale);
  std::vector<double> distortion(p.rows());
  const std::vector<long double> value = values(p, &distortion);
  Case c(name<T>("gaussian_log_likelihood", s, shared, offset, scale));
  const GaussianLogLikelihood<T> a{data(c, p, offset), c.output<A>("value", p.rows()),
                                   c.output<A>("distortion", p.rows()),
                                   work(c, gaussian_value_work(Cuda{}, s.models, s.samples, s.features))};
  c.run([&] { gaussian_log_likelihood(Cuda{}, a); });
  c.expect(a.value, rounded<A>(value));
  c.expect(a.distortion, rounded<A>(distortion));
  if (!offset) c.expect_coalesced();
}

template <class T>
void backward(const Shape& s, Shared shared, size_t offset, Scale scale) {
  using A = accumulate_t<T>;
  const Problem<T> p(s, shared, scale);
  std::vector<double> distortion(p.rows());
  values(p, &distortion);
  const Expected expected = gradients(p, p.upstream);
  Case c(name<T>("gaussian_log_likelihood_backward", s, shared, offset, scale));
  const GaussianLogLikelihoodBackward<T> a{data(c, p, 0), c.input<A>("grad", p.upstream),
                                           c.input<A>("distortion", distortion), gradient_arrays(c, p, offset)};
  c.run([&] { gaussian_log_likelihood_backward(Cuda{}, a); });
  c.expect(a.gradients.x_hat, rounded<T>(expected.x_hat));
  c.expect(a.gradients.log_sigma2, rounded<T>(expected.log_sigma2), kSumTolerance<T>);
  if (!offset) c.expect_coalesced();
}

template <class T>
void mean(const Shape& s, Shared shared, size_t offset, Scale scale) {
  const Problem<T> p(s, shared, scale);
  const std::vector<long double> value = values(p);
  std::vector<long double> mean(s.models, s.samples == 0 ? NAN : 0.0L);
  for (int64_t row = 0; row < p.rows(); ++row) mean[row / s.samples] += value[row] / s.samples;
  const Expected expected = gradients(p, std::vector<double>(p.rows(), -1.0 / static_cast<double>(s.samples)));
  Case c(name<T>("gaussian_log_likelihood_mean", s, shared, offset, scale));
  const int64_t rows = p.noise == Noise::kFeature ? 0 : p.rows();
  const GaussianLogLikelihoodMean<T> a{data(c, p, 0),
                                       c.output<T>("mean", s.models),
                                       c.output<T>("value", rows),
                                       c.output<T>("distortion", rows),
                                       gradient_arrays(c, p, offset),
                                       work(c, gaussian_mean_work(Cuda{}, s.models, s.samples, s.features))};
  c.run([&] { gaussian_log_likelihood_mean(Cuda{}, a); });
  c.expect(a.mean, rounded<T>(mean));
  c.expect(a.gradients.x_hat, rounded<T>(expected.x_hat));
  c.expect(a.gradients.log_sigma2, rounded<T>(expected.log_sigma2), kSumTolerance<T>);
  if (!offset) c.expect_coalesced();
}

template <class T>
void all_shapes(Shared shared) {
  constexpr bool kHasMean = std::is_same_v<T, accumulate_t<T>>;
  const auto run = [&](const Shape& s, size_t offset, Scale scale = kUsual) {
    forward<T>(s, shared, offset, scale);
    backward<T>(s, shared, offset, scale);
    if constexpr (kHasMean) mean<T>(s, shared, offset, scale);
  };
  for (const Shape& s : kShapes) {
    // sums over features have a block for 32 of them: too many threads to look for races in
    if (!(kFewThreads && kind(shared) == Noise::kFeature && s.features > 1000)) run(s, 0);
  }
  if (kFewThreads || kTraceMemory) return;
  run({1, 5, 24}, 1);
  if constexpr (!std::is_same_v<T, Float16>) {  // which has no such numbers
    for (const Scale scale : kExtreme<T>) {
      run({2, 5, 7}, 0, scale);
      run({1, 9, 12}, 0, scale);
      run({1, 2, 128}, 0, scale);  // whole steps of a warp
    }
    // data that agree, though 1/σ is infinite
    if constexpr (kHasMean) mean<T>({2, 5, 7}, shared, 0, {std::is_same_v<T, double> ? -1500.0 : -190.0, 0});
  }
}

template <class T>
void all_noises() {
  all_shapes<T>(Shared::kAll);
  all_shapes<T>(Shared::kFeature);
  all_shapes<T>(Shared::kRow);
  all_shapes<T>(Shared::kElement);
  if (kTraceMemory || kFewThreads) return;
  all_shapes<T>(Shared::kModel);
  all_shapes<T>(Shared::kFeatureOfModel);
}

void run_all() {
  all_noises<float>();
  if (kFewThreads) return;
  all_noises<double>();
  all_noises<Float16>();
  all_noises<BFloat16>();
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
