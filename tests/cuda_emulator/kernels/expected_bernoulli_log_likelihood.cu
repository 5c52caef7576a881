#include "ops/cuda/expected_bernoulli_log_likelihood.cu"

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t models, samples, features, latents;

  std::string text() const {
    return " " + std::to_string(models) + "x" + std::to_string(samples) + "x" + std::to_string(features) + "x" +
           std::to_string(latents);
  }
};

const std::vector<Shape> kShapes =
    kTraceMemory  ? std::vector<Shape>{{1, 9, 136, 72}, {2, 9, 64, 32}}
    : kFewThreads ? std::vector<Shape>{{2, 2, 11, 40}}
                  : std::vector<Shape>{{1, 1, 1, 1},   {1, 5, 4, 3},    {2, 3, 33, 35}, {1, 0, 3, 2},
                                       {3, 2, 300, 7}, {1, 3, 600, 90}, {1, 3, 4, 33},  {1, 3, 0, 5}};

// Rows of several pieces, of vectors and not.
const std::vector<Shape> kLongRows = {{2, 1, 1048, 1}, {1, 1, 1030, 1}};

template <class T>
void test_moments(const Shape& s) {
  const int64_t samples = s.models * s.samples, latents = samples * s.latents;
  const int64_t weights = s.models * s.features * s.latents;
  auto logvar = normal<T>(latents, 2.0);
  const auto weight = normal<T>(weights);
  // the largest is the last of one sample and the first of the next; only from it does the scale come out as below
  const int64_t scaled = std::min<int64_t>(2, std::max<int64_t>(0, samples - 1));
  for (int64_t row = 1; row <= scaled; ++row) {
    logvar[(row + 1) * s.latents - 1] = row == 1 ? 151.0 : 150.5;
    if (s.latents > 1) logvar[row * s.latents] = row == 1 ? 150.5 : 151.0;
  }
  std::vector<double> variance(latents), scale(samples, 1.0), squared_weight(weights);
  for (int64_t i = 0; i < latents; ++i) variance[i] = std::exp(logvar[i]);
  for (int64_t row = 1; row <= scaled && sizeof(T) == sizeof(float); ++row) {
    const bool is_largest = s.latents > 1 || row == 1;
    scale[row] = is_largest ? 0x1p60 : 0x1p59;  // the least with e^151 or e^150.5 / scale² <= 2^100
    for (int64_t i = row * s.latents; i < (row + 1) * s.latents; ++i) variance[i] /= scale[row] * scale[row];
  }
  for (int64_t i = 0; i < weights; ++i) squared_weight[i] = weight[i] * weight[i];
  Case c(std::string("second moments ") + Scalar<T>::kName + s.text());
  const Variances<T> v{samples, s.latents, c.input<T>("logvar", logvar), c.output<T>("variance", latents),
                       c.output<T>("scale", samples)};
  const SquaredWeights<T> w{weights, c.input<T>("weight", weight), c.output<T>("squared_weight", weights)};
  c.run([&] {
    variances(Cuda{}, v);
    squared_weights(Cuda{}, w);
  });
  c.expect(v.variance, variance);
  c.expect(v.scale, scale);
  c.expect(w.squared_weight, squared_weight);
  c.expect_coalesced(w.weight, w.squared_weight);
}

template <class T>
void test_expected_bernoulli(const Shape& s, bool shared) {
  const int64_t M = s.models, N = s.samples, D = s.features;
  const auto x = normal<T>((shared ? 1 : M) * N * D), bias = normal<T>(M * D), activation = normal<T>(M * N * D, 5.0);
  auto variance = normal<T>(M * N * D, 3.0);
  for (double& v : variance) v = std::abs(v);
  std::vector<double> scale(M * N, 1.0);
  for (int64_t row = 1; row < M * N && sizeof(T) == sizeof(float); row += 2) scale[row] = 16;
  std::vector<double> value(M * N), slope(M * N * D), curvature(M * N * D);
  for (int64_t i = 0; i < M * N * D; ++i) {
    const int64_t row = i / D, m = row / N;
    const double pixel = x[shared ? i % (N * D) : i], logit = activation[i] + bias[m * D + i % D];
    value[row] += pixel * logit;
    slope[i] = pixel;
    for (int term = 0; term < kMixtureTerms; ++term) {
      const double t2 = scale[row] * scale[row];
      const double p = mixture_weight(term), spread = std::sqrt(mixture_variance(term) + variance[i] * t2);
      const double below = std::erfc(-logit / spread / std::sqrt(2.0)) / 2;
      const double density = std::exp(-logit * logit / (2 * spread * spread)) / std::sqrt(2 * M_PI);
      value[row] -= p * (logit * below + spread * density);
      slope[i] -= p * below;
      curvature[i] -= p * density / (2 * spread) * t2;
    }
  }
  Case c(std::string("expected_bernoulli ") + Scalar<T>::kName + s.text() + (shared ? " shared" : ""));
  const Pieces pieces = pieces_of(Cuda{}, M * N, D);
  T* value_out = c.output<T>("value", M * N);
  const ExpectedBernoulli<T> a{M,
                               N,
                               D,
                               shared,
                               c.input<T>("x", x),
                               c.input<T>("bias", bias),
                               c.input<T>("scale", scale),
                               pieces,
                               pieces.count > 1 ? c.output<T>("sums", M * N * pieces.count) : value_out,
                               value_out,
                               c.in_out<T>("slope", activation),
                               c.in_out<T>("curvature", variance)};
  c.run([&] { expected_bernoulli(Cuda{}, a); });
  c.expect(a.value, value);
  c.expect(a.slope, slope);
  c.expect(a.curvature, curvature);
  c.expect_coalesced();
}

template <class T>
void test_posterior_gradients(const Shape& s) {
  const int64_t rows = s.models * s.samples, K = s.latents;
  const auto grad = normal<T>(rows), mean = normal<T>(rows * K), variance = normal<T>(rows * K);
  const auto by_mean = normal<T>(rows * K), by_variance = normal<T>(rows * K);
  std::vector<double> grad_mean(rows * K), grad_logvar(rows * K), scaled_mean(rows * K), scaled_variance(rows * K);
  for (int64_t i = 0; i < rows * K; ++i) {
    const double g = grad[i / K];
    grad_mean[i] = g * by_mean[i];
    grad_logvar[i] = g * by_variance[i] * variance[i];
    scaled_mean[i] = g * mean[i];
    scaled_variance[i] = g * variance[i];
  }
  Case c(std::string("posterior_gradients ") + Scalar<T>::kName + s.text());
  const PosteriorGradients<T> a{s.models,
                                s.samples,
                                K,
                                c.input<T>("grad", grad),
                                c.input<T>("mean", mean),
                                c.input<T>("variance", variance),
                                c.in_out<T>("grad_mean", by_mean),
                                c.in_out<T>("grad_logvar", by_variance),
                                c.output<T>("scaled_mean", rows * K),
                                c.output<T>("scaled_variance", rows * K)};
  c.run([&] { posterior_gradients(Cuda{}, a); });
  c.expect(a.grad_mean, grad_mean);
  c.expect(a.grad_logvar, grad_logvar);
  c.expect(a.scaled_mean, scaled_mean);
  c.expect(a.scaled_variance, scaled_variance);
  c.expect_coalesced();
}

template <class T>
void test_weight_gradient(const Shape& s) {
  const int64_t weights = s.models * s.features * s.latents;
  const auto weight = normal<T>(weights), by_square = normal<T>(weights), by_weight = normal<T>(weights);
  std::vector<double> expected(weights);
  for (int64_t i = 0; i < weights; ++i) expected[i] = by_weight[i] + 2 * weight[i] * by_square[i];
  Case c(std::string("bernoulli_weight_gradient ") + Scalar<T>::kName + s.text());
  const BernoulliWeightGradient<T> a{weights, c.input<T>("weight", weight), c.input<T>("by_square", by_square),
                                     c.in_out<T>("grad_weight", by_weight)};
  c.run([&] { bernoulli_weight_gradient(Cuda{}, a); });
  c.expect(a.grad_weight, expected);
  c.expect_coalesced();
}

template <class T>
void all_kernels() {
  for (const Shape& s : kShapes) {
    test_moments<T>(s);
    test_expected_bernoulli<T>(s, false);
    test_expected_bernoulli<T>(s, true);
    test_posterior_gradients<T>(s);
    test_weight_gradient<T>(s);
  }
  for (const Shape& s : kLongRows) test_expected_bernoulli<T>(s, true);
}

void run_all() {
  all_kernels<float>();
  if (!kFewThreads) all_kernels<double>();
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
