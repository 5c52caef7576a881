#include "ops/cuda/linear_vae_elbo.cu"

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

const std::vector<Shape> kShapes = kTraceMemory  ? std::vector<Shape>{{1, 9, 136, 72}, {2, 9, 64, 32}}
                                   : kFewThreads ? std::vector<Shape>{{2, 2, 11, 40}}
                                                 : std::vector<Shape>{{1, 1, 1, 1}, {1, 5, 4, 3},    {2, 3, 33, 35},
                                                                      {1, 0, 3, 2}, {3, 9, 300, 70}, {1, 290, 8, 290}};

double divergence_term(double log_d) { return std::expm1(log_d) - log_d; }

template <class T>
void test_centre(const Shape& s, bool shared) {
  const int64_t M = s.models, N = s.samples, D = s.features;
  const auto x = normal<T>((shared ? 1 : M) * N * D), mu = normal<T>(M * D);
  std::vector<double> expected(M * N * D);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t i = 0; i < D; ++i)
        expected[(m * N + n) * D + i] = x[((shared ? 0 : m) * N + n) * D + i] - mu[m * D + i];
  Case c(std::string("centre ") + Scalar<T>::kName + s.text() + (shared ? " shared" : ""));
  const CentreArguments<T> a{
      M, N, D, shared, c.input<T>("x", x), c.input<T>("mu", mu), c.output<T>("centred", M * N * D)};
  c.run([&] { centre(Cuda{}, a); });
  c.expect(a.centred, expected);
  c.expect_coalesced();
}

template <class T>
void test_column_norms(const Shape& s) {
  const int64_t M = s.models, D = s.features, K = s.latents;
  const auto weight = normal<T>(M * D * K);
  std::vector<double> expected(M * K);
  for (int64_t i = 0; i < M * D * K; ++i) expected[i / (D * K) * K + i % K] += weight[i] * weight[i];
  Case c(std::string("column_norms ") + Scalar<T>::kName + s.text());
  const ColumnNormArguments<T> a{M, D, K, c.input<T>("weight", weight), c.output<T>("column_norms", M * K)};
  c.run([&] { column_norms(Cuda{}, a); });
  c.expect(a.column_norms, expected);
  c.expect_coalesced();
}

template <class T>
void test_latent_constants(const Shape& s) {
  const int64_t M = s.models, K = s.latents;
  const auto norms = normal<T>(M * K), log_d = normal<T>(M * K);
  std::vector<double> spread(M), divergence(M);
  for (int64_t i = 0; i < M * K; ++i) {
    spread[i / K] += std::exp(log_d[i]) * norms[i];
    divergence[i / K] += divergence_term(log_d[i]);
  }
  Case c(std::string("latent_constants ") + Scalar<T>::kName + s.text());
  const LatentConstants<T> a{M,
                             K,
                             c.input<T>("column_norms", norms),
                             c.input<T>("log_d", log_d),
                             c.output<double>("spread", M),
                             c.output<double>("divergence", M)};
  c.run([&] { latent_constants(Cuda{}, a); });
  c.expect(a.spread, spread, 1e-13);
  c.expect(a.divergence, divergence, 1e-13);
  c.expect_coalesced();
}

template <class T>
void test_residual(const Shape& s) {
  const int64_t M = s.models, N = s.samples, D = s.features, K = s.latents;
  auto centred = normal<T>(M * N * D);
  const auto decoded = normal<T>(M * N * D), code = normal<T>(M * N * K);
  const auto spread = normal<double>(M), divergence = normal<double>(M);
  auto log_sigma2 = normal<T>(M, 0.5);
  const auto beta = normal<T>(M, 0.1, 1.0);
  if (M * N > 0) {  // a row whose squares are beyond a float's range, though its ELBO is not
    std::fill(centred.begin(), centred.begin() + D, 0x1p65);
    log_sigma2[0] = 88;
  }
  std::vector<double> residual(M * N * D), distortion(M * N), elbo(M * N);
  for (int64_t row = 0; row < M * N; ++row) {
    const int64_t m = row / N;
    double squared_code = 0;
    distortion[row] = spread[m];
    for (int64_t i = row * D; i < (row + 1) * D; ++i) {
      residual[i] = centred[i] - decoded[i];
      distortion[row] += residual[i] * residual[i];
    }
    for (int64_t k = row * K; k < (row + 1) * K; ++k) squared_code += code[k] * code[k];
    elbo[row] = -distortion[row] / (2 * std::exp(log_sigma2[m])) - D / 2.0 * (kLog2Pi + log_sigma2[m]) -
                beta[m] / 2 * (divergence[m] + squared_code);
  }
  Case c(std::string("residual ") + Scalar<T>::kName + s.text());
  const ResidualArguments<T> a{M,
                               N,
                               D,
                               K,
                               c.input<T>("centred", centred),
                               c.input<T>("code", code),
                               c.input<double>("spread", spread),
                               c.input<double>("divergence", divergence),
                               c.input<T>("log_sigma2", log_sigma2),
                               c.input<T>("beta", beta),
                               c.in_out<T>("residual", decoded),
                               c.output<double>("distortion", M * N),
                               c.output<T>("elbo", M * N)};
  c.run([&] { lineavae::residual(Cuda{}, a); });
  c.expect(a.residual, residual);
  c.expect(a.distortion, distortion, kTolerance<T>);
  c.expect(a.elbo, elbo);
  c.expect_coalesced();
}

template <class T>
void test_code_gradients(const Shape& s) {
  const int64_t M = s.models, N = s.samples, K = s.latents;
  const auto grad = normal<T>(M * N), log_sigma2 = normal<T>(M, 0.5), beta = normal<T>(M, 0.1, 1.0);
  const auto code = normal<T>(M * N * K), pulled = normal<T>(M * N * K);
  std::vector<double> grad_code(M * N * K), scaled_code(M * N * scaled_columns(K));
  for (int64_t i = 0; i < M * N * K; ++i) {
    const int64_t row = i / K, m = row / N;
    grad_code[i] = grad[row] * (pulled[i] / std::exp(log_sigma2[m]) - beta[m] * code[i]);
    scaled_code[row * scaled_columns(K) + i % K] = grad[row] * code[i];
  }
  for (int64_t row = 0; row < M * N; ++row) scaled_code[row * scaled_columns(K) + K] = grad[row];
  Case c(std::string("code_gradients ") + Scalar<T>::kName + s.text());
  const CodeGradients<T> a{M,
                           N,
                           K,
                           c.input<T>("grad", grad),
                           c.input<T>("log_sigma2", log_sigma2),
                           c.input<T>("beta", beta),
                           c.input<T>("code", code),
                           c.in_out<T>("grad_code", pulled),
                           c.output<T>("scaled_code", M * N * scaled_columns(K))};
  c.run([&] { code_gradients(Cuda{}, a); });
  c.expect(a.grad_code, grad_code);
  c.expect(a.scaled_code, scaled_code);
  c.expect_coalesced();
}

template <class T>
void test_sample_sums(const Shape& s) {
  const int64_t M = s.models, N = s.samples, D = s.features, K = s.latents;
  const auto grad = normal<T>(M * N), distortion = normal<T>(M * N, 1.0, 3.0), log_d = normal<T>(M * K);
  const auto log_sigma2 = normal<T>(M, 0.5), beta = normal<T>(M, 0.1, 1.0), norms = normal<T>(M * K);
  const auto residual_pull = normal<T>(M * K), code_sum = normal<T>(M * K);
  std::vector<double> weight_scale(M * K), encoder_pull(M * K), grad_log_d(M * K), grad_log_sigma2(M);
  for (int64_t m = 0; m < M; ++m) {
    const double sigma2 = std::exp(log_sigma2[m]);
    double total = 0, weighted = 0;
    for (int64_t n = m * N; n < (m + 1) * N; ++n) {
      total += grad[n];
      weighted += grad[n] * distortion[n];
    }
    grad_log_sigma2[m] = (weighted / sigma2 - total * D) / 2;
    for (int64_t k = m * K; k < (m + 1) * K; ++k) {
      const double d = std::exp(log_d[k]);
      weight_scale[k] = total * d / sigma2;
      encoder_pull[k] = residual_pull[k] / sigma2 - beta[m] * code_sum[k];
      grad_log_d[k] = -total / 2 * (beta[m] * (d - 1) + d * norms[k] / sigma2);
    }
  }
  Case c(std::string("sample_sums ") + Scalar<T>::kName + s.text());
  const SampleSums<T> a{M,
                        N,
                        K,
                        static_cast<double>(D),
                        c.input<T>("grad", grad),
                        c.input<double>("distortion", distortion),
                        c.input<T>("log_d", log_d),
                        c.input<T>("log_sigma2", log_sigma2),
                        c.input<T>("beta", beta),
                        c.input<T>("column_norms", norms),
                        c.input<T>("residual_pull", residual_pull),
                        c.input<T>("code_sum", code_sum),
                        c.output<double>("weight_scale", M * K),
                        c.output<T>("encoder_pull", M * K),
                        c.output<T>("grad_log_d", M * K),
                        c.output<T>("grad_log_sigma2", M)};
  c.run([&] { sample_sums(Cuda{}, a); });
  c.expect(a.weight_scale, weight_scale, 1e-13);
  c.expect(a.encoder_pull, encoder_pull);
  c.expect(a.grad_log_d, grad_log_d);
  c.expect(a.grad_log_sigma2, grad_log_sigma2);
  c.expect_coalesced();
}

template <class T>
void test_decoder_gradients(const Shape& s) {
  const int64_t M = s.models, D = s.features, K = s.latents;
  const auto log_sigma2 = normal<T>(M, 0.5), weight = normal<T>(M * D * K);
  const auto pulled = normal<T>(M * D), product = normal<T>(M * D * scaled_columns(K));
  const auto weight_scale = normal<double>(M * K);
  std::vector<double> grad_weight(M * D * K), grad_mu(M * D);
  for (int64_t i = 0; i < M * D * K; ++i)
    grad_weight[i] = product[i / K * scaled_columns(K) + i % K] / std::exp(log_sigma2[i / (D * K)]) -
                     weight_scale[i / (D * K) * K + i % K] * weight[i];
  for (int64_t i = 0; i < M * D; ++i)
    grad_mu[i] = product[i * scaled_columns(K) + K] / std::exp(log_sigma2[i / D]) - pulled[i];
  Case c(std::string("decoder_gradients ") + Scalar<T>::kName + s.text());
  const DecoderGradients<T> a{M,
                              D,
                              K,
                              c.input<T>("log_sigma2", log_sigma2),
                              c.input<T>("weight", weight),
                              c.input<double>("weight_scale", weight_scale),
                              c.input<T>("residual_sums", product),
                              c.input<T>("pulled", pulled),
                              c.output<T>("grad_weight", M * D * K),
                              c.output<T>("grad_mu", M * D)};
  c.run([&] { decoder_gradients(Cuda{}, a); });
  c.expect(a.grad_weight, grad_weight);
  c.expect(a.grad_mu, grad_mu);
  c.expect_coalesced();
}

template <class T>
void all_shapes() {
  for (const Shape& s : kShapes) {
    test_centre<T>(s, false);
    test_centre<T>(s, true);
    test_column_norms<T>(s);
    test_latent_constants<T>(s);
    test_residual<T>(s);
    test_code_gradients<T>(s);
    test_sample_sums<T>(s);
    test_decoder_gradients<T>(s);
  }
}

void run_all() {
  all_shapes<float>();
  if (!kFewThreads) all_shapes<double>();
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
