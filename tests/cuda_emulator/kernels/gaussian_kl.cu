#include "ops/cuda/gaussian_kl.cu"

#include "harness.h"

namespace lineavae::test {
namespace {

// Weights of the latents, which all rows may share.
enum class Weights { kNone, kShared, kPerRow };

struct Shape {
  int64_t rows, latents;
  bool extreme = false;  // log-variances beyond every range, and every other weight and gradient 0
};

// Lengths below, at and beyond what a lane, a warp, a block and a tile take; several blocks, and several rows in one.
const std::vector<Shape> kShapes =
    kTraceMemory  ? std::vector<Shape>{{64, 64}, {40, 200}, {40, 16}}
    : kFewThreads ? std::vector<Shape>{{9, 40}, {8, 7}}
                  : std::vector<Shape>{{0, 5},   {5, 0},   {1, 1},    {5, 1},    {1, 7},    {7, 13},   {37, 12},
                                       {3, 200}, {531, 7}, {531, 12}, {2, 1100}, {1, 4096}, {2, 4100}, {1, 4099}};

template <class T>
struct Posterior {
  const Shape s;
  const Weights weights;
  const std::vector<double> mean, logvar, weight;
  Posterior(const Shape& shape, Weights w)
      : s(shape),
        weights(w),
        mean(normal<T>(s.rows * s.latents)),
        logvar(normal<T>(s.rows * s.latents, !s.extreme                  ? 2.0
                                             : std::is_same_v<T, double> ? 700.0
                                                                         : 90.0)),
        weight(magnitudes(
            some_zeros(normal<accumulate_t<T>>((w == Weights::kShared ? 1 : s.rows) * s.latents), s.extreme))) {}

  double weight_at(size_t i) const {
    return weights == Weights::kNone ? 1 : weight[weights == Weights::kShared ? i % s.latents : i];
  }
  KLWeight<T> kl_weight(Case& c) const {
    if (weights == Weights::kNone) return {};
    return {c.input<accumulate_t<T>>("kl_weight", weight), weights == Weights::kShared};
  }
};

template <Reduction R>
std::vector<long double> per_value(const Shape& s, const std::vector<long double>& elements) {
  if (R == Reduction::kNone) return elements;
  std::vector<long double> sums(s.rows);
  for (size_t i = 0; i < elements.size(); ++i) sums[i / s.latents] += elements[i];
  return sums;
}

template <Reduction R, class T>
std::string name(const char* kernel, const Shape& s, Weights weights) {
  return std::string(kernel) + (R == Reduction::kRow ? " rows " : " elements ") + Scalar<T>::kName + " " +
         std::to_string(s.rows) + "x" + std::to_string(s.latents) +
         (weights == Weights::kShared   ? " weighted alike"
          : weights == Weights::kPerRow ? " weighted"
                                        : "") +
         (s.extreme ? " extreme" : "");
}

template <Reduction R, class T>
void forward(const Shape& s, size_t offset, Weights weights) {
  using Value = accumulate_t<T>;
  const Posterior<T> posterior(s, weights);
  std::vector<long double> kl(posterior.mean.size());
  for (size_t i = 0; i < kl.size(); ++i) {
    const long double m = posterior.mean[i], t = posterior.logvar[i];
    kl[i] = posterior.weight_at(i) * (m * m + expm1l(t) - t) / 2;
  }
  const std::vector<double> expected = rounded<Value>(per_value<R>(s, kl));
  Case c(name<R, T>("gaussian_kl", s, weights) + (offset ? " misaligned" : ""));
  const T* mean = c.input<T>("mean", posterior.mean, offset);
  const T* logvar = c.input<T>("logvar", posterior.logvar);
  Value* out = c.output<Value>("kl", expected.size());
  const int64_t pieces = most_pieces(Cuda{}, s.latents);
  Value* sums = pieces > 1 ? c.output<Value>("sums", s.rows * pieces) : out;
  const KLWeight<T> weight = posterior.kl_weight(c);
  c.run([&] { gaussian_kl(Cuda{}, GaussianKL<T>{R, s.rows, s.latents, mean, logvar, weight, out, sums}); });
  c.expect(out, expected);
  if (!offset && weights == Weights::kNone) c.expect_coalesced();
}

template <Reduction R, class T>
void backward(const Shape& s, size_t offset, Weights weights) {
  using Value = accumulate_t<T>;
  const Posterior<T> posterior(s, weights);
  const size_t size = posterior.mean.size();
  const std::vector<double> upstream = some_zeros(normal<Value>(R == Reduction::kRow ? s.rows : size), s.extreme);
  std::vector<long double> expected_mean(size), expected_logvar(size);
  for (size_t i = 0; i < size; ++i) {
    const long double g = posterior.weight_at(i) * upstream[R == Reduction::kRow ? i / s.latents : i];
    expected_mean[i] = g * posterior.mean[i];
    expected_logvar[i] = g * expm1l(posterior.logvar[i]) / 2;
  }
  Case c(name<R, T>("gaussian_kl_backward", s, weights) + (offset ? " misaligned" : ""));
  const Value* grad = c.input<Value>("grad", upstream);
  const T* mean = c.input<T>("mean", posterior.mean);
  const T* logvar = c.input<T>("logvar", posterior.logvar);
  T* grad_mean = c.output<T>("grad_mean", size);
  T* grad_logvar = c.output<T>("grad_logvar", size, offset);
  const KLWeight<T> weight = posterior.kl_weight(c);
  c.run([&] {
    gaussian_kl_backward(
        Cuda{}, GaussianKLBackward<T>{R, s.rows, s.latents, grad, mean, logvar, weight, grad_mean, grad_logvar});
  });
  c.expect(grad_mean, rounded<T>(expected_mean));
  c.expect(grad_logvar, rounded<T>(expected_logvar));
  if (!offset && weights == Weights::kNone) c.expect_coalesced();
}

template <class T>
void both(const Shape& s, size_t offset) {
  for (const Weights weights : {Weights::kNone, Weights::kShared, Weights::kPerRow}) {
    forward<Reduction::kRow, T>(s, offset, weights);
    backward<Reduction::kRow, T>(s, offset, weights);
  }
  forward<Reduction::kNone, T>(s, offset, Weights::kNone);
  backward<Reduction::kNone, T>(s, offset, Weights::kNone);
}

template <class T>
void all_shapes() {
  for (const Shape& s : kShapes) both<T>(s, 0);
  both<T>({5, 24}, 1);
  if (!kTraceMemory) both<T>({kFewThreads ? 10 : 40, 3, true}, 0);
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
