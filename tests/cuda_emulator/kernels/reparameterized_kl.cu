#include "ops/cuda/reparameterized_kl.cu"

#include <cmath>

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t models, samples, rows, latents;
  bool weighted = false, shared_weight = false;
  bool extreme = false;  // log-variances beyond every range, and every other weight and gradient 0

  int64_t posteriors() const { return models * rows * latents; }
  std::string name() const {
    return std::to_string(models) + "x" + std::to_string(samples) + "x" + std::to_string(rows) + "x" +
           std::to_string(latents) + (weighted ? shared_weight ? " weighted alike" : " weighted" : "") +
           (extreme ? " extreme" : "");
  }
};

// Latents below, at and beyond what a lane, a warp, a block and a tile take, multiples of 4 and not; several blocks,
// and several rows in one.
const std::vector<Shape> kShapes = kTraceMemory ? std::vector<Shape>{{1, 1, 64, 64}, {1, 2, 40, 200}, {2, 1, 40, 16}}
                                   : kFewThreads
                                       ? std::vector<Shape>{{1, 2, 9, 40, true, false}, {2, 2, 5, 7, true, false}}
                                       : std::vector<Shape>{{1, 1, 0, 5},
                                                            {1, 2, 5, 0},
                                                            {0, 1, 5, 3},
                                                            {1, 1, 1, 1},
                                                            {2, 3, 5, 1, true, true},
                                                            {1, 2, 7, 13, true, false},
                                                            {3, 2, 5, 7, true, false},
                                                            {2, 3, 3, 9, true, true},
                                                            {2, 1, 9, 6},
                                                            {2, 2, 37, 12, true, false},
                                                            {2, 1, 11, 32, true, true},
                                                            {1, 2, 3, 200},
                                                            {2, 2, 3, 203, true, false},
                                                            {1, 1, 531, 7},
                                                            {3, 1, 177, 12, true, false},
                                                            {2, 1, 2, 1100, true, true},
                                                            {2, 2, 1, 4100, true, false},
                                                            {1, 1, 2, 4099}};

const std::vector<int64_t> kSeeds = {0x123456789abcd000, -3, 7};  // as doubles too

// Written out again, in unsigned integers and double.
double noise(int64_t seed, uint64_t index) {
  uint64_t word[4] = {index / 4 % (uint64_t{1} << 32), index / 4 >> 32, 0, 0};
  uint64_t key[2] = {static_cast<uint64_t>(seed) % (uint64_t{1} << 32), static_cast<uint64_t>(seed) >> 32};
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = 0xd2511f53u * word[0], odd = 0xcd9e8d57u * word[2];
    const uint64_t next[4] = {(odd >> 32) ^ word[1] ^ key[0], odd % (uint64_t{1} << 32),
                              (even >> 32) ^ word[3] ^ key[1], even % (uint64_t{1} << 32)};
    std::copy(next, next + 4, word);
    key[0] = (key[0] + 0x9e3779b9u) % (uint64_t{1} << 32);
    key[1] = (key[1] + 0xbb67ae85u) % (uint64_t{1} << 32);
  }
  const int pair = index % 4 / 2 * 2;
  const double u = std::ldexp(static_cast<double>(word[pair] | 1), -32);
  const double angle = 2 * M_PI * std::ldexp(static_cast<double>(word[pair + 1]), -32);
  return std::sqrt(-2 * std::log(u)) * (index % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

template <class T>
struct Posterior {
  using Value = accumulate_t<T>;
  const Shape s;
  const std::vector<double> mean, logvar, weight;
  explicit Posterior(const Shape& shape)
      : s(shape),
        mean(normal<T>(s.posteriors())),
        logvar(normal<T>(s.posteriors(), !s.extreme                  ? 2.0
                                         : std::is_same_v<T, double> ? 700.0
                                                                     : 90.0)),
        weight(magnitudes(some_zeros(normal<Value>(s.shared_weight ? s.latents : s.models * s.latents), s.extreme))) {}

  double weight_at(int64_t i) const {
    if (!s.weighted) return 1;
    return weight[(s.shared_weight ? 0 : i / (s.rows * s.latents) * s.latents) + i % s.latents];
  }
  double noise_at(int64_t sample, int64_t i) const {
    const int64_t of_model = s.rows * s.latents;
    return noise(kSeeds[i / of_model], sample * of_model + i % of_model);
  }
  int64_t index_of_sample(int64_t sample, int64_t i) const {
    const int64_t of_model = s.rows * s.latents;
    return (i / of_model * s.samples + sample) * of_model + i % of_model;
  }

  GaussianPosterior<T> arguments(Case& c, size_t offset) const {
    const std::vector<double> seeds(kSeeds.begin(), kSeeds.begin() + s.models);
    const T* m = c.input<T>("mean", mean, offset);
    const T* t = c.input<T>("logvar", logvar);
    const Value* w = s.weighted ? c.input<Value>("kl_weight", weight) : nullptr;
    return {s.models, s.samples, s.rows, s.latents, m, t, {w, s.shared_weight}, c.input<int64_t>("seed", seeds)};
  }
};

template <class T>
std::string name(const char* kernel, const Shape& s, size_t offset) {
  return std::string(kernel) + " " + Scalar<T>::kName + " " + s.name() + (offset ? " misaligned" : "");
}

template <class T>
void forward(const Shape& s, size_t offset) {
  using Value = accumulate_t<T>;
  const Posterior<T> p(s);
  std::vector<long double> z(s.posteriors() * s.samples), kl(s.models * s.rows);
  for (int64_t i = 0; i < s.posteriors(); ++i) {
    const long double m = p.mean[i], t = p.logvar[i];
    kl[i / s.latents] += p.weight_at(i) * (m * m + expm1l(t) - t) / 2;
    for (int64_t sample = 0; sample < s.samples; ++sample)
      z[p.index_of_sample(sample, i)] = m + expl(t / 2) * p.noise_at(sample, i);
  }
  Case c(name<T>("reparameterized_kl", s, offset));
  const GaussianPosterior<T> arguments = p.arguments(c, offset);
  Value *out_z = c.output<Value>("z", z.size()), *out_kl = c.output<Value>("kl", kl.size());
  const int64_t pieces = most_pieces(Cuda{}, s.latents);
  Value* sums = pieces > 1 ? c.output<Value>("sums", kl.size() * pieces) : out_kl;
  c.run([&] { reparameterized_kl(Cuda{}, ReparameterizedKL<T>{arguments, out_z, out_kl, sums}); });
  c.expect(out_z, rounded<Value>(z));
  c.expect(out_kl, rounded<Value>(kl));
  if (!offset) c.expect_coalesced(arguments.mean, arguments.logvar, out_z);
}

template <class T>
void backward(const Shape& s, size_t offset) {
  using Value = accumulate_t<T>;
  const Posterior<T> p(s);
  const std::vector<double> grad_z = some_zeros(normal<Value>(s.posteriors() * s.samples), s.extreme);
  const std::vector<double> grad_kl = some_zeros(normal<Value>(s.models * s.rows), s.extreme);
  std::vector<long double> grad_mean(s.posteriors()), grad_logvar(s.posteriors());
  for (int64_t i = 0; i < s.posteriors(); ++i) {
    const long double of_kl = grad_kl[i / s.latents] * p.weight_at(i);
    long double sum = 0, product = 0;
    for (int64_t sample = 0; sample < s.samples; ++sample) {
      const double g = grad_z[p.index_of_sample(sample, i)];
      sum += g;
      product += g * p.noise_at(sample, i);
    }
    grad_mean[i] = sum + of_kl * p.mean[i];
    grad_logvar[i] = (expl(p.logvar[i] / 2.0L) * product + of_kl * expm1l(p.logvar[i])) / 2;
  }
  Case c(name<T>("reparameterized_kl_backward", s, offset));
  const GaussianPosterior<T> arguments = p.arguments(c, offset);
  const Value *of_z = c.input<Value>("grad_z", grad_z), *of_kl = c.input<Value>("grad_kl", grad_kl);
  T *of_mean = c.output<T>("grad_mean", grad_mean.size()), *of_logvar = c.output<T>("grad_logvar", grad_logvar.size());
  c.run([&] {
    reparameterized_kl_backward(Cuda{}, ReparameterizedKLBackward<T>{arguments, of_z, of_kl, of_mean, of_logvar});
  });
  c.expect(of_mean, rounded<T>(grad_mean));
  c.expect(of_logvar, rounded<T>(grad_logvar));
  if (!offset) c.expect_coalesced(arguments.mean, arguments.logvar, of_z, of_mean, of_logvar);
}

template <class T>
void all_shapes() {
  for (const Shape& s : kShapes) {
    forward<T>(s, 0);
    backward<T>(s, 0);
  }
  const Shape misaligned{2, 2, 5, 24, true, false};
  forward<T>(misaligned, 1);
  backward<T>(misaligned, 1);
  if (kTraceMemory) return;
  const int64_t rows = kFewThreads ? 10 : 40;
  for (const Shape& extreme : {Shape{1, 2, rows, 3, false, false, true}, Shape{2, 1, rows, 3, true, false, true}}) {
    forward<T>(extreme, 0);
    backward<T>(extreme, 0);
  }
}

void run_all() {
  all_shapes<float>();
  if (kFewThreads) return;
  all_shapes<double>();
  all_shapes<Float16>();
  all_shapes<BFloat16>();
}

}  // namespace
}  // namespace lineavae::test

int main(int argc, char** argv) { return lineavae::test::run_program(argc, argv, lineavae::test::run_all); }
