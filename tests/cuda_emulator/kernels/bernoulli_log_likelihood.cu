#include "ops/cuda/bernoulli_log_likelihood.cuh"

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t rows, features;
};

// Lengths below, at and beyond what a vector, a warp and a block take.
const std::vector<Shape> kShapes = kTraceMemory  ? std::vector<Shape>{{5, 64}, {3, 1048}}
                                   : kFewThreads ? std::vector<Shape>{{2, 40}, {3, 7}}
                                                 : std::vector<Shape>{{0, 5},   {5, 0},   {1, 1},    {3, 4},   {7, 13},
                                                                      {2, 300}, {2, 515}, {2, 1024}, {3, 2052}};

double softplus(double a) { return std::max(a, 0.0) + std::log1p(std::exp(-std::abs(a))); }

template <class T>
std::string name(const char* kernel, const Shape& s, size_t offset) {
  return std::string(kernel) + " " + Scalar<T>::kName + " " + std::to_string(s.rows) + "x" +
         std::to_string(s.features) + (offset ? " misaligned" : "");
}

template <class T>
void forward(const Shape& s, size_t offset) {
  using Value = accumulate_t<T>;
  const auto x = normal<T>(s.rows * s.features), logits = normal<T>(s.rows * s.features, 5.0);
  std::vector<double> expected(s.rows);
  for (size_t i = 0; i < x.size(); ++i) expected[i / s.features] += x[i] * logits[i] - softplus(logits[i]);
  Case c(name<T>("bernoulli_log_likelihood", s, offset));
  const BernoulliLogLikelihood<T> a{s.rows, s.features, c.input<T>("x", x), c.input<T>("logits", logits, offset),
                                    c.output<Value>("value", s.rows)};
  c.run([&] { bernoulli_log_likelihood(Cuda{}, a); });
  c.expect(a.value, expected);
  if (!offset) c.expect_coalesced();
}

template <class T>
void backward(const Shape& s, size_t offset) {
  using Value = accumulate_t<T>;
  const auto grad = normal<Value>(s.rows);
  const auto x = normal<T>(s.rows * s.features), logits = normal<T>(s.rows * s.features, 5.0);
  std::vector<double> expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) expected[i] = grad[i / s.features] * (x[i] - 1 / (1 + std::exp(-logits[i])));
  Case c(name<T>("bernoulli_log_likelihood_backward", s, offset));
  const BernoulliLogLikelihoodBackward<T> a{s.rows,
                                            s.features,
                                            c.input<Value>("grad", grad),
                                            c.input<T>("x", x),
                                            c.input<T>("logits", logits),
                                            c.output<T>("grad_logits", x.size(), offset)};
  c.run([&] { bernoulli_log_likelihood_backward(Cuda{}, a); });
  c.expect(a.grad_logits, expected);
  if (!offset) c.expect_coalesced();
}

template <class T>
void all_shapes() {
  for (const Shape& s : kShapes) {
    forward<T>(s, 0);
    backward<T>(s, 0);
  }
  const Shape misaligned{5, 24};
  forward<T>(misaligned, 1);
  backward<T>(misaligned, 1);
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
