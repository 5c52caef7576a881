#include "ops/cuda/linear_vae_ascent.cu"

#include <cmath>

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t models, features, latents, steps;
};

const std::vector<Shape> kShapes = kFewThreads || kTraceMemory
                                       ? std::vector<Shape>{{1, 64, 16, 2}}
                                       : std::vector<Shape>{{2, 1, 1, 3}, {3, 5, 2, 4}, {1, 33, 16, 3}, {2, 64, 16, 3}};

// Of the directions in which all models are zero.
constexpr int64_t kOmittedFeatures = 5;
constexpr double kOmittedVariance = 2.5;

// One model's trajectory with dense D x D products, from the gradients as they are printed.
struct Trained {
  std::vector<double> parameters, first, second;
  double norm;
};

struct Options {
  bool adam, learn_sigma2;
};

Trained train_densely(const std::vector<double>& S, std::vector<double> x, const double* lr, const double* beta,
                      int64_t D, int64_t K, int64_t steps, int64_t first_step, Options options) {
  const int64_t size = 2 * D * K + K + 1;
  std::vector<double> m(options.adam ? size : 0), v(options.adam ? size : 0);
  double norm = NAN;
  for (int64_t step = 0; step < steps; ++step) {
    const double *W = x.data(), *V = W + D * K, *log_d = V + D * K;
    const double sigma2 = std::exp(x[size - 1]), b = beta[step];
    std::vector<double> A(D * D), gradient(size);  // A = I - W V
    for (int64_t i = 0; i < D; ++i)
      for (int64_t j = 0; j < D; ++j) {
        A[i * D + j] = i == j;
        for (int64_t k = 0; k < K; ++k) A[i * D + j] -= W[i * K + k] * V[j * K + k];
      }
    std::vector<double> AS(D * D);
    for (int64_t i = 0; i < D; ++i)
      for (int64_t j = 0; j < D; ++j)
        for (int64_t l = 0; l < D; ++l) AS[i * D + j] += A[i * D + l] * S[l * D + j];
    double distortion = kOmittedVariance;
    for (int64_t i = 0; i < D; ++i)
      for (int64_t j = 0; j < D; ++j) distortion += AS[i * D + j] * A[i * D + j];
    for (int64_t k = 0; k < K; ++k) {
      const double d = std::exp(log_d[k]);
      double norm_of_column = 0;
      for (int64_t i = 0; i < D; ++i) norm_of_column += W[i * K + k] * W[i * K + k];
      distortion += d * norm_of_column;
      gradient[2 * D * K + k] = (b * (1 - d) - d * norm_of_column / sigma2) / 2;
      for (int64_t i = 0; i < D; ++i) {
        double by_weight = -d * W[i * K + k], by_encoder = 0, pulled = 0;
        for (int64_t j = 0; j < D; ++j) {
          by_weight += AS[i * D + j] * V[j * K + k];
          by_encoder += AS[j * D + i] * W[j * K + k];
          pulled += S[i * D + j] * V[j * K + k];
        }
        gradient[i * K + k] = by_weight / sigma2;
        gradient[D * K + i * K + k] = by_encoder / sigma2 - b * pulled;
      }
    }
    gradient[size - 1] = options.learn_sigma2 ? (distortion / sigma2 - D - kOmittedFeatures) / 2 : 0;
    double squares = 0;
    const double t = static_cast<double>(first_step + step + 1);
    for (int64_t i = 0; i < size; ++i) {
      const double g = gradient[i];
      squares += g * g;
      if (options.adam) {
        m[i] += 0.1 * (g - m[i]);
        v[i] = 0.999 * v[i] + 0.001 * g * g;
        x[i] += lr[step] / (1 - std::pow(0.9, t)) * m[i] / (std::sqrt(v[i] / (1 - std::pow(0.999, t))) + 1e-8);
      } else {
        x[i] += lr[step] * g;
      }
    }
    norm = std::sqrt(squares);
  }
  return {x, m, v, norm};
}

void append(std::vector<double>& to, const std::vector<double>& values) {
  to.insert(to.end(), values.begin(), values.end());
}

// The last model does not train, where there are more than one; with a tolerance beyond all gradients, each one that
// does stops after a step.
template <class T>
void test_ascend(const Shape& s, Options options, bool stops) {
  const int64_t M = s.models, D = s.features, K = s.latents, S = s.steps, size = num_parameters(D, K), first_step = 3;
  const auto factor = normal<T>(D * D);
  std::vector<double> covariance(D * D);
  for (int64_t i = 0; i < D; ++i)
    for (int64_t j = 0; j < D; ++j)
      for (int64_t l = 0; l < D; ++l) covariance[i * D + j] += factor[i * D + l] * factor[j * D + l] / D;
  covariance = rounded<T>(covariance);
  const auto start = normal<T>(M * size, 0.3), beta = magnitudes(normal<T>(M * S)), lr = normal<T>(M * S, 0.001, 0.01);
  std::vector<double> trains(M, 1.0), parameters, first, second, norms, taken, active, corrections;
  if (M > 1) trains[M - 1] = 0;
  for (int64_t model = 0; model < M; ++model) {
    const int64_t steps = trains[model] == 0 ? 0 : stops ? 1 : S;
    const std::vector<double> own(start.begin() + model * size, start.begin() + (model + 1) * size);
    const Trained trained = train_densely(covariance, own, lr.data() + model * S, beta.data() + model * S, D, K, steps,
                                          first_step, options);
    append(parameters, trained.parameters);
    append(first, trained.first);
    append(second, trained.second);
    norms.push_back(trained.norm);
    taken.push_back(static_cast<double>(steps));
    active.push_back(trains[model] != 0 && !stops);
  }
  const std::vector<double> zeros(options.adam ? M * size : 0);
  Case c(std::string("ascend ") + Scalar<T>::kName + " " + std::to_string(M) + "x" + std::to_string(D) + "x" +
         std::to_string(K) + (options.adam ? " adam" : "") + (options.learn_sigma2 ? " sigma2" : "") +
         (stops ? " stops" : ""));
  auto* correction = reinterpret_cast<BiasCorrection*>(c.output<double>("corrections", 2 * S));
  AscentArguments<T> a{M,
                       D,
                       K,
                       S,
                       kOmittedFeatures,
                       options.adam,
                       options.learn_sigma2,
                       stops ? 1e6 : 0.0,
                       kOmittedVariance,
                       correction,
                       c.input<T>("covariance", covariance),
                       c.input<T>("lr", lr),
                       c.input<T>("beta", beta),
                       c.input<bool>("trains", trains),
                       c.input<T>("start", start),
                       c.input<T>("start_first", zeros),
                       c.input<T>("start_second", zeros),
                       c.output<T>("parameters", M * size),
                       c.output<T>("first_moment", zeros.size()),
                       c.output<T>("second_moment", zeros.size()),
                       c.output<bool>("active", M),
                       c.output<int64_t>("steps_taken", M),
                       c.output<T>("gradient_norm", M)};
  c.run([&] {
    bias_corrections(Cuda{}, BiasCorrections<T>{S, first_step, correction});
    ascend(Cuda{}, a);
  });
  const double tolerance = std::is_same_v<T, double> ? 1e-12 : 2e-5;
  c.expect(a.parameters, parameters, tolerance);
  if (options.adam) {
    c.expect(a.first_moment, first, tolerance);
    c.expect(a.second_moment, second, tolerance);
  }
  c.expect(a.gradient_norm, norms, tolerance);
  c.expect(a.steps_taken, taken);
  c.expect(a.active, active);
}

// Of steps by products: what `pull` makes of any C, M and Q.
template <class T>
void test_pull(const Shape& s) {
  const int64_t M = s.models, D = s.features, K = s.latents, S = s.steps, size = num_parameters(D, K), step = S - 1;
  const auto covariance = normal<T>(D * D), parameters = normal<T>(M * size, 0.3), beta = magnitudes(normal<T>(M * S)),
             product = normal<T>(M * D * K), gram = magnitudes(normal<T>(M * K * K)), aggregate = normal<T>(M * K * K);
  std::vector<double> pulls = gram, weighted = aggregate, grad_log_d(M * K), distortion(M);
  for (int64_t model = 0; model < M; ++model) {
    const double* x = parameters.data() + model * size;
    const double sigma2 = std::exp(x[size - 1]), b = beta[model * S + step];
    double& sum = distortion[model];
    sum = kOmittedVariance;
    for (int64_t i = 0; i < D; ++i) sum += covariance[i * D + i];
    for (int64_t i = 0; i < D * K; ++i) sum -= 2 * x[i] * product[model * D * K + i];
    for (int64_t i = 0; i < K * K; ++i) sum += gram[model * K * K + i] * aggregate[model * K * K + i];
    for (int64_t k = 0; k < K; ++k) {
      const double d = std::exp(x[2 * D * K + k]);
      const int64_t diagonal = (model * K + k) * K + k;
      sum += d * gram[diagonal];
      grad_log_d[model * K + k] = (b * (1 - d) - d * gram[diagonal] / sigma2) / 2;
      pulls[diagonal] += b * sigma2;
      weighted[diagonal] += d;
    }
  }
  Case c(std::string("pull ") + Scalar<T>::kName + " " + std::to_string(M) + "x" + std::to_string(D) + "x" +
         std::to_string(K));
  ProductStep<T> a{};
  a.ascent.models = M;
  a.ascent.features = D;
  a.ascent.latents = K;
  a.ascent.steps = S;
  a.ascent.omitted_features = kOmittedFeatures;
  a.ascent.omitted_variance = kOmittedVariance;
  a.step = step;
  a.ascent.covariance = c.input<T>("covariance", covariance);
  a.ascent.parameters = c.in_out<T>("parameters", parameters);
  a.ascent.beta = c.input<T>("beta", beta);
  a.covariance_encoder = c.input<T>("covariance_encoder", product);
  a.gram = c.in_out<T>("gram", gram);
  a.aggregate = c.in_out<T>("aggregate", aggregate);
  a.grad_log_d = c.output<T>("grad_log_d", M * K);
  a.distortion = c.output<T>("distortion", M);
  c.run([&] { pull(Cuda{}, a); });
  c.expect(a.ascent.parameters, parameters);
  c.expect(a.gram, pulls);
  c.expect(a.aggregate, weighted);
  c.expect(a.grad_log_d, grad_log_d);
  c.expect(a.distortion, distortion, std::is_same_v<T, double> ? 1e-12 : 1e-5);
}

// How `move` moves all parameters by any gradient. The last model does not train, where there are more than one.
template <class T>
void test_move(const Shape& s, Options options, bool stops) {
  const int64_t M = s.models, D = s.features, K = s.latents, S = s.steps, size = num_parameters(D, K), step = S - 1;
  auto parameters = normal<T>(M * size, 0.3), first = normal<T>(options.adam ? M * size : 0),
       second = magnitudes(normal<T>(options.adam ? M * size : 0, 0.1, 1.0));
  const auto lr = normal<T>(M * S, 0.001, 0.01), product = normal<T>(M * D * K), weight_pull = normal<T>(M * D * K),
             rise = normal<T>(M * D * K), grad_log_d = normal<T>(M * K), distortion = normal<T>(M);
  std::vector<double> active(M, 1.0), taken(M, 7.0), norms(M, 5.0), corrections(2 * S, 1.0);
  corrections[2 * step] = 1.5, corrections[2 * step + 1] = 1.25;
  if (M > 1) active[M - 1] = 0;
  Case c(std::string("move ") + Scalar<T>::kName + " " + std::to_string(M) + "x" + std::to_string(D) + "x" +
         std::to_string(K) + (options.adam ? " adam" : "") + (options.learn_sigma2 ? " sigma2" : "") +
         (stops ? " stops" : ""));
  ProductStep<T> a{};
  a.ascent.models = M;
  a.ascent.features = D;
  a.ascent.latents = K;
  a.ascent.steps = S;
  a.ascent.omitted_features = kOmittedFeatures;
  a.ascent.omitted_variance = kOmittedVariance;
  a.ascent.adam = options.adam;
  a.ascent.learn_sigma2 = options.learn_sigma2;
  a.step = step;
  a.ascent.corrections = reinterpret_cast<const BiasCorrection*>(c.input<double>("corrections", corrections));
  a.ascent.lr = c.input<T>("lr", lr);
  a.ascent.parameters = c.in_out<T>("parameters", parameters);
  a.ascent.first_moment = c.in_out<T>("first_moment", first);
  a.ascent.second_moment = c.in_out<T>("second_moment", second);
  a.ascent.active = c.in_out<bool>("active", active);
  a.ascent.steps_taken = c.in_out<int64_t>("steps_taken", taken);
  a.ascent.gradient_norm = c.in_out<T>("gradient_norm", norms);
  a.covariance_encoder = c.input<T>("covariance_encoder", product);
  a.weight_pull = c.input<T>("weight_pull", weight_pull);
  a.encoder_rise = c.input<T>("encoder_rise", rise);
  a.grad_log_d = const_cast<T*>(c.input<T>("grad_log_d", grad_log_d));
  a.distortion = const_cast<T*>(c.input<T>("distortion", distortion));
  for (int64_t model = 0; model < M; ++model) {
    if (active[model] == 0) continue;
    std::vector<double> gradient;
    const double precision = std::exp(-parameters[(model + 1) * size - 1]);
    for (int64_t i = model * D * K; i < (model + 1) * D * K; ++i)
      gradient.push_back(precision * (product[i] - weight_pull[i]));
    for (int64_t i = model * D * K; i < (model + 1) * D * K; ++i) gradient.push_back(precision * rise[i]);
    for (int64_t k = 0; k < K; ++k) gradient.push_back(grad_log_d[model * K + k]);
    gradient.push_back(options.learn_sigma2 ? (precision * distortion[model] - D - kOmittedFeatures) / 2 : 0);
    double squares = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double g = gradient[i], lr_now = lr[model * S + step];
      const int64_t at = model * size + i;
      squares += g * g;
      if (i == size - 1 && !options.learn_sigma2) continue;
      if (options.adam) {
        first[at] = 0.9 * first[at] + 0.1 * g;
        second[at] = 0.999 * second[at] + 0.001 * g * g;
        parameters[at] += lr_now * 1.5 * first[at] / (std::sqrt(second[at]) * 1.25 + 1e-8);
      } else {
        parameters[at] += lr_now * g;
      }
    }
    norms[model] = std::sqrt(squares);
    taken[model] = 8;
    if (model == 0) a.ascent.tolerance = norms[0] * (stops ? 1.001 : 0.999);
    active[model] = !(norms[model] < a.ascent.tolerance);
  }
  c.run([&] { move(Cuda{}, a); });
  const double tolerance = std::is_same_v<T, double> ? 1e-12 : 1e-5;
  c.expect(a.ascent.parameters, parameters, tolerance);
  c.expect(a.ascent.first_moment, first, tolerance);
  c.expect(a.ascent.second_moment, second, tolerance);
  c.expect(a.ascent.gradient_norm, norms, tolerance);
  c.expect(a.ascent.steps_taken, taken);
  c.expect(a.ascent.active, active);
}

void run_all() {
  for (const Shape& shape : {Shape{2, 70, 3, 2}, Shape{3, 5, 17, 1}}) {
    test_pull<double>(shape);
    test_pull<float>(shape);
    for (const Options& options : {Options{true, true}, Options{true, false}, Options{false, true}}) {
      test_move<double>(shape, options, false);
      test_move<float>(shape, options, true);
    }
  }
  for (const Shape& shape : kShapes) {
    for (const bool adam : {true, false}) {
      test_ascend<double>(shape, {adam, true}, false);
      test_ascend<float>(shape, {adam, true}, false);
    }
    test_ascend<float>(shape, {true, false}, false);
    test_ascend<float>(shape, {true, true}, true);
  }
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
