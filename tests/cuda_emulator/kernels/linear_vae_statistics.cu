#include "ops/cuda/linear_vae_statistics.cu"

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t models, features, latents;

  std::string text() const {
    return " " + std::to_string(models) + "x" + std::to_string(features) + "x" + std::to_string(latents);
  }
};

const std::vector<Shape> kShapes =
    kTraceMemory  ? std::vector<Shape>{{1, 136, 72}, {2, 64, 32}}
    : kFewThreads ? std::vector<Shape>{{1, 20, 40}}
                  : std::vector<Shape>{{1, 1, 1}, {1, 4, 3}, {3, 33, 35}, {2, 150, 70}, {1, 600, 5}, {1, 9, 300}};

template <class T>
void test_subtract_mean(const Shape& s, bool shared) {
  const int64_t M = s.models, D = s.features;
  const auto sample_mean = normal<T>((shared ? 1 : M) * D), mu = normal<T>(M * D);
  std::vector<double> expected(M * D);
  for (int64_t i = 0; i < M * D; ++i) expected[i] = sample_mean[shared ? i % D : i] - mu[i];
  Case c(std::string("subtract_mean ") + Scalar<T>::kName + s.text() + (shared ? " shared" : ""));
  const OffsetArguments<T> a{
      M, D, shared, c.input<T>("sample_mean", sample_mean), c.input<T>("mu", mu), c.output<T>("offset", M * D)};
  c.run([&] { subtract_mean(Cuda{}, a); });
  c.expect(a.offset, expected);
  c.expect_coalesced();
}

// Only the parts' sum has a meaning; each is checked by itself, with the same division into parts.
template <class T>
void test_distortion_parts(const Shape& s, Covariance form, bool shared) {
  const int64_t M = s.models, D = s.features, K = s.latents, own = shared ? 1 : M, rank = K + 3;
  const int64_t columns = form == Covariance::kDense ? D : form == Covariance::kFactor ? rank : 1;
  const auto covariance = normal<T>(own * D * columns), weight = normal<T>(M * D * K), log_d = normal<T>(M * K);
  const auto offset = normal<T>(M * D), encoded = normal<T>(M * K), product = normal<T>(M * D * K);
  const auto gram = normal<T>(M * K * K), aggregate = normal<T>(M * K * K);
  const int64_t parts = num_parts(D);
  std::vector<double> expected(M * parts);
  const auto part_of = [&](int64_t index, int64_t count) {
    for (int64_t part = 0;; ++part)
      if (index < (part + 1) * count / parts) return part;
  };
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t i = 0; i < D; ++i) {
      const int64_t row = m * D + i, own_row = (shared ? 0 : m) * D + i;
      double sum = offset[row] * offset[row];
      if (form == Covariance::kDense) sum += covariance[own_row * D + i];
      if (form != Covariance::kDense)
        for (int64_t j = 0; j < columns; ++j)
          sum += covariance[own_row * columns + j] * covariance[own_row * columns + j];
      for (int64_t k = 0; k < K; ++k)
        sum -= 2 * weight[row * K + k] * (product[row * K + k] + offset[row] * encoded[m * K + k]);
      expected[m * parts + part_of(i, D)] += sum;
    }
    for (int64_t k = 0; k < K; ++k) {
      double sum = std::exp(log_d[m * K + k]) * gram[(m * K + k) * K + k];
      for (int64_t l = 0; l < K; ++l)
        sum += gram[(m * K + k) * K + l] * (aggregate[(m * K + k) * K + l] + encoded[m * K + k] * encoded[m * K + l]);
      expected[m * parts + part_of(k, K)] += sum;
    }
  }
  const char* form_name = form == Covariance::kDense ? " dense" : form == Covariance::kFactor ? " factor" : " diagonal";
  Case c(std::string("distortion_parts ") + Scalar<T>::kName + s.text() + form_name + (shared ? " shared" : ""));
  const DistortionArguments<T> a{M,
                                 D,
                                 K,
                                 form,
                                 form == Covariance::kFactor ? rank : 0,
                                 shared,
                                 c.input<T>("covariance", covariance),
                                 c.input<T>("weight", weight),
                                 c.input<T>("log_d", log_d),
                                 c.input<T>("offset", offset),
                                 c.input<T>("encoded_offset", encoded),
                                 c.input<T>("covariance_encoder", product),
                                 c.input<T>("gram", gram),
                                 c.input<T>("aggregate", aggregate),
                                 c.output<double>("parts", M * parts)};
  c.run([&] { distortion_parts(Cuda{}, a); });
  c.expect(a.parts, expected, kTolerance<T>);
  // rows of a factor with K + 3 columns begin anywhere in a sector
  if (form != Covariance::kFactor) c.expect_coalesced();
}

template <class T>
void test_elbo(const Shape& s) {
  const int64_t M = s.models, D = s.features, K = s.latents, parts = num_parts(D);
  const double num_features = static_cast<double>(D + 2);
  const auto part = normal<double>(M * parts);
  const auto log_d = normal<T>(M * K), log_sigma2 = normal<T>(M, 0.5), beta = normal<T>(M, 0.1, 1.0);
  const auto encoded = normal<T>(M * K), aggregate = normal<T>(M * K * K);
  std::vector<double> elbo_value(M), distortion(M);
  for (int64_t m = 0; m < M; ++m) {
    double divergence = 0;
    for (int64_t p = 0; p < parts; ++p) distortion[m] += part[m * parts + p];
    for (int64_t k = 0; k < K; ++k) {
      const double t = log_d[m * K + k], a = encoded[m * K + k];
      divergence += std::expm1(t) - t + aggregate[(m * K + k) * K + k] + a * a;
    }
    elbo_value[m] = -distortion[m] / (2 * std::exp(log_sigma2[m])) - num_features / 2 * (kLog2Pi + log_sigma2[m]) -
                    beta[m] / 2 * divergence;
  }
  Case c(std::string("elbo ") + Scalar<T>::kName + s.text());
  const ElboArguments<T> a{M,
                           D,
                           K,
                           num_features,
                           c.input<double>("parts", part),
                           c.input<T>("log_d", log_d),
                           c.input<T>("log_sigma2", log_sigma2),
                           c.input<T>("beta", beta),
                           c.input<T>("encoded_offset", encoded),
                           c.input<T>("aggregate", aggregate),
                           c.output<T>("elbo", M),
                           c.output<double>("distortion", M)};
  c.run([&] { elbo(Cuda{}, a); });
  c.expect(a.distortion, distortion, kTolerance<T>);
  c.expect(a.elbo, elbo_value);
  // not coalesced: it reads the K numbers of a diagonal
}

template <class T>
void test_latent_gradients(const Shape& s) {
  const int64_t M = s.models, K = s.latents;
  const auto grad = normal<T>(M), log_d = normal<T>(M * K), log_sigma2 = normal<T>(M, 0.5);
  const auto beta = normal<T>(M, 0.1, 1.0), encoded = normal<T>(M * K);
  const auto gram = normal<T>(M * K * K), aggregate = normal<T>(M * K * K);
  std::vector<double> decoder_pull(M * K * K), encoder_pull(M * K * K), weight_scale(M * K), grad_log_d(M * K);
  for (int64_t m = 0; m < M; ++m) {
    const double sigma2 = std::exp(log_sigma2[m]), g = grad[m];
    for (int64_t k = 0; k < K; ++k) {
      const int64_t row = m * K + k;
      const double d = std::exp(log_d[row]);
      for (int64_t l = 0; l < K; ++l) {
        decoder_pull[row * K + l] = aggregate[row * K + l] + encoded[row] * encoded[m * K + l];
        encoder_pull[row * K + l] = (gram[row * K + l] + (k == l ? beta[m] * sigma2 : 0)) / std::max(1.0, sigma2);
      }
      weight_scale[row] = g / sigma2 * d;
      grad_log_d[row] = g / 2 * (beta[m] - beta[m] * d - d * gram[row * K + k] / sigma2);
    }
  }
  Case c(std::string("latent_gradients ") + Scalar<T>::kName + s.text());
  const LatentGradients<T> a{M,
                             K,
                             c.input<T>("grad", grad),
                             c.input<T>("log_d", log_d),
                             c.input<T>("log_sigma2", log_sigma2),
                             c.input<T>("beta", beta),
                             c.input<T>("encoded_offset", encoded),
                             c.input<T>("gram", gram),
                             c.input<T>("aggregate", aggregate),
                             c.output<T>("decoder_pull", M * K * K),
                             c.output<T>("encoder_pull", M * K * K),
                             c.output<double>("weight_scale", M * K),
                             c.output<T>("grad_log_d", M * K)};
  c.run([&] { latent_gradients(Cuda{}, a); });
  c.expect(a.decoder_pull, decoder_pull);
  c.expect(a.encoder_pull, encoder_pull);
  c.expect(a.weight_scale, weight_scale, 1e-13);
  c.expect(a.grad_log_d, grad_log_d);
  c.expect_coalesced();
}

template <class T>
void test_weight_gradients(const Shape& s) {
  const int64_t M = s.models, D = s.features, K = s.latents;
  const auto grad = normal<T>(M), log_sigma2 = normal<T>(M, 0.5), weight = normal<T>(M * D * K);
  const auto offset = normal<T>(M * D), encoded = normal<T>(M * K), product = normal<T>(M * D * K);
  const auto weight_scale = normal<double>(M * K);
  const auto decoder_product = normal<T>(M * D * K), encoder_product = normal<T>(M * D * K);
  std::vector<double> grad_weight(M * D * K), shortfall(M * D * K), grad_mu(M * D);
  for (int64_t row = 0; row < M * D; ++row) {
    const int64_t m = row / D;
    const double scale = grad[m] / std::exp(log_sigma2[m]);
    grad_mu[row] = scale * offset[row];
    for (int64_t k = 0; k < K; ++k) {
      const int64_t i = row * K + k, latent = m * K + k;
      grad_weight[i] =
          scale * (product[i] + offset[row] * encoded[latent] - decoder_product[i]) - weight_scale[latent] * weight[i];
      shortfall[i] = scale * (weight[i] - std::max(1.0, std::exp(log_sigma2[m])) * encoder_product[i]);
      grad_mu[row] -= scale * weight[i] * encoded[latent];
    }
  }
  Case c(std::string("weight_gradients ") + Scalar<T>::kName + s.text());
  const WeightGradients<T> a{M,
                             D,
                             K,
                             c.input<T>("grad", grad),
                             c.input<T>("log_sigma2", log_sigma2),
                             c.input<T>("weight", weight),
                             c.input<T>("offset", offset),
                             c.input<T>("encoded_offset", encoded),
                             c.input<T>("covariance_encoder", product),
                             c.input<double>("weight_scale", weight_scale),
                             c.in_out<T>("grad_weight", decoder_product),
                             c.in_out<T>("shortfall", encoder_product),
                             c.output<T>("grad_mu", M * D)};
  c.run([&] { weight_gradients(Cuda{}, a); });
  c.expect(a.grad_weight, grad_weight);
  c.expect(a.shortfall, shortfall);
  c.expect(a.grad_mu, grad_mu);
  c.expect_coalesced();
}

template <class T>
void test_remaining_gradients(const Shape& s) {
  const int64_t M = s.models, D = s.features, K = s.latents;
  const double num_features = static_cast<double>(D + 2);
  const auto grad = normal<T>(M), log_sigma2 = normal<T>(M, 0.5), distortion = normal<T>(M, 1.0, 3.0);
  const auto offset = normal<T>(M * D), pull = normal<T>(M * K), pulled = normal<T>(M * D);
  const auto product = normal<T>(M * K * D), mu_part = normal<T>(M * D);
  std::vector<double> grad_encoder(M * K * D), grad_mu(M * D), grad_log_sigma2(M);
  for (int64_t row = 0; row < M * K; ++row)
    for (int64_t i = 0; i < D; ++i)
      grad_encoder[row * D + i] = product[row * D + i] + pull[row] * offset[row / K * D + i];
  for (int64_t i = 0; i < M * D; ++i) grad_mu[i] = mu_part[i] - pulled[i];
  for (int64_t m = 0; m < M; ++m)
    grad_log_sigma2[m] = grad[m] * (distortion[m] / (2 * std::exp(log_sigma2[m])) - num_features / 2);
  Case c(std::string("remaining_gradients ") + Scalar<T>::kName + s.text());
  const RemainingGradients<T> a{M,
                                D,
                                K,
                                num_features,
                                c.input<T>("grad", grad),
                                c.input<T>("log_sigma2", log_sigma2),
                                c.input<double>("distortion", distortion),
                                c.input<T>("offset", offset),
                                c.input<T>("offset_pull", pull),
                                c.input<T>("pulled", pulled),
                                c.in_out<T>("grad_encoder", product),
                                c.in_out<T>("grad_mu", mu_part),
                                c.output<T>("grad_log_sigma2", M)};
  c.run([&] { remaining_gradients(Cuda{}, a); });
  c.expect(a.grad_encoder, grad_encoder);
  c.expect(a.grad_mu, grad_mu);
  c.expect(a.grad_log_sigma2, grad_log_sigma2);
  c.expect_coalesced();
}

template <class T>
void test_diagonal_product(const Shape& s, bool features_first, bool shared) {
  const int64_t M = s.models, D = s.features, K = s.latents;
  const auto factor = normal<T>((shared ? 1 : M) * D), in = normal<T>(M * D * K);
  std::vector<double> expected(M * D * K);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t i = 0; i < D; ++i)
      for (int64_t k = 0; k < K; ++k) {
        const double f = factor[(shared ? 0 : m) * D + i];
        const int64_t features_major = (m * D + i) * K + k, latents_major = (m * K + k) * D + i;
        expected[features_first ? latents_major : features_major] =
            f * f * in[features_first ? features_major : latents_major];
      }
  Case c(std::string("diagonal_product ") + Scalar<T>::kName + s.text() + (features_first ? " features first" : "") +
         (shared ? " shared" : ""));
  const DiagonalProduct<T> a{M,
                             D,
                             K,
                             shared,
                             features_first,
                             c.input<T>("factor", factor),
                             c.input<T>("in", in),
                             c.output<T>("out", M * D * K)};
  c.run([&] { diagonal_product(Cuda{}, a); });
  c.expect(a.out, expected);
  c.expect_coalesced();
}

template <class T>
void all_shapes() {
  for (const Shape& s : kShapes) {
    for (const bool shared : {false, true}) {
      if (shared && kFewThreads) continue;
      test_subtract_mean<T>(s, shared);
      for (const Covariance form : {Covariance::kDense, Covariance::kFactor, Covariance::kDiagonal})
        test_distortion_parts<T>(s, form, shared);
      for (const bool features_first : {false, true}) test_diagonal_product<T>(s, features_first, shared);
    }
    test_elbo<T>(s);
    test_latent_gradients<T>(s);
    test_weight_gradients<T>(s);
    test_remaining_gradients<T>(s);
  }
}

void run_all() {
  all_shapes<float>();
  if (!kFewThreads) all_shapes<double>();
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
