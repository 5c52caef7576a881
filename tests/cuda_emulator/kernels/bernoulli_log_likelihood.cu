#include "ops/cuda/bernoulli_log_likelihood.cu"

#include "harness.h"

namespace lineavae::test {
namespace {

struct Shape {
  int64_t models, samples, features;
};

// Lengths below, at and beyond what a vector, a warp, its steps, a piece of a row and a block take.
const std::vector<Shape> kShapes =
    kTraceMemory ? std::vector<Shape>{{1, 5, 64}, {2, 3, 1048}}
    : kFewThreads
        ? std::vector<Shape>{{1, 2, 40}, {2, 2, 7}, {1, 1, 1028}}
        : std::vector<Shape>{{1, 0, 5},   {1, 5, 0},   {1, 1, 1},    {3, 2, 4},    {2, 7, 13},   {1, 2, 127},
                             {1, 2, 300}, {1, 2, 515}, {1, 2, 1023}, {2, 1, 1024}, {1, 3, 2052}, {1, 1, 33800}};

double softplus(double a) { return std::max(a, 0.0) + std::log1p(std::exp(-std::abs(a))); }

template <class T>
std::string name(const char* kernel, const Shape& s, bool shared, size_t offset) {
  return std::string(kernel) + " " + Scalar<T>::kName + " " + std::to_string(s.models) + "x" +
         std::to_string(s.samples) + "x" + std::to_string(s.features) + (shared ? " shared" : "") +
         (offset ? " misaligned" : "");
}

template <class T>
void forward(const Shape& s, bool shared, size_t offset) {
  using Value = accumulate_t<T>;
  const int64_t M = s.models, N = s.samples, D = s.features;
  const auto x = normal<T>((shared ? 1 : M) * N * D), logits = normal<T>(M * N * D, 5.0);
  std::vector<double> expected(M * N);
  for (int64_t i = 0; i < M * N * D; ++i) {
    expected[i / D] += x[shared ? i % (N * D) : i] * logits[i] - softplus(logits[i]);
  }
  Case c(name<T>("bernoulli_log_likelihood", s, shared, offset));
  const Pieces pieces = pieces_of(Cuda{}, M * N, D);
  Value* value = c.output<Value>("value", M * N);
  const BernoulliLogLikelihood<T> a{M,
                                    N,
                                    D,
                                    shared,
                                    c.input<T>("x", x),
                                    c.input<T>("logits", logits, offset),
                                    pieces,
                                    pieces.count > 1 ? c.output<Value>("sums", M * N * pieces.count) : value,
                                    value};
  c.run([&] { bernoulli_log_likelihood(Cuda{}, a); });
  c.expect(a.value, expected);
  if (!offset) c.expect_coalesced();
}

template <class T>
void backward(const Shape& s, bool shared, size_t offset) {
  using Value = accumulate_t<T>;
  const int64_t M = s.models, N = s.samples, D = s.features;
  const auto grad = normal<Value>(M * N);
  const auto x = normal<T>((shared ? 1 : M) * N * D), logits = normal<T>(M * N * D, 5.0);
  std::vector<double> expected(M * N * D);
  for (int64_t i = 0; i < M * N * D; ++i) {
    expected[i] = grad[i / D] * (x[shared ? i % (N * D) : i] - 1 / (1 + std::exp(-logits[i])));
  }
  Case c(name<T>("bernoulli_log_likelihood_backward", s, shared, offset));
  const BernoulliLogLikelihoodBackward<T> a{M,
                                            N,
                                            D,
                                            shared,
                                            c.input<Value>("grad", grad),
                                            c.input<T>("x", x),
                                            c.input<T>("logits", logits),
                                            c.output<T>("grad_logits", M * N * D, offset)};
  c.run([&] { bernoulli_log_likelihood_backward(Cuda{}, a); });
  c.expect(a.grad_logits, expected);
  if (!offset) c.expect_coalesced();
}

template <class T>
void all_shapes() {
  for (const Shape& s : kShapes) {
    for (const bool shared : {false, true}) {
      forward<T>(s, shared, 0);
      backward<T>(s, shared, 0);
    }
  }
  const Shape misaligned{1, 5, 24};
  forward<T>(misaligned, false, 1);
  backward<T>(misaligned, false, 1);
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
