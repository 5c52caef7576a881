// Row sums: a warp per piece of a row, kWidth features per lane and step, several steps loaded at once. Gradients:
// kWidth elements per thread. Everything is read and written once; accumulation is in float, or double for double.
// Deterministic.
#include "common/approximate.cuh"
#include "common/cuda.cuh"
#include "ops/bernoulli_log_likelihood.h"

namespace lineavae {
namespace cuda {

constexpr int kSteps = 4;
template <int kWidth>
constexpr int kStride = kWarp * kWidth;

// Of kSteps vectors of this lane, or where not kWhole of those that begin within `length`; all are loaded before any is
// used.
template <bool kWhole, int kWidth, class T>
__device__ __forceinline__ accumulate_t<T> loss_of_steps(const T* x_at, const T* logits_at, int length) {
  Vector<T, kWidth> x[kSteps], logits[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (kWhole || step * kStride<kWidth> < length) {
      x[step] = load_vector<kWidth>(x_at + step * kStride<kWidth>);
      logits[step] = load_vector<kWidth>(logits_at + step * kStride<kWidth>);
    }
  }
  accumulate_t<T> loss = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (!kWhole && step * kStride<kWidth> >= length) break;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) loss += bernoulli_loss(load(x[step].at[j]), load(logits[step].at[j]));
  }
  return loss;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kPieceThreads) bernoulli_rows(const BernoulliLogLikelihood<T> a) {
  const int64_t row = piece_row();
  if (row >= a.models * a.samples) return;
  const int length = piece_length(a.pieces, a.features), first = lane() * kWidth;
  const int64_t begin = blockIdx.y * int64_t{a.pieces.length} + first;
  const T* x = a.x + (a.shared ? row % a.samples : row) * a.features + begin;
  const T* logits = a.logits + row * a.features + begin;
  accumulate_t<T> loss = 0;
  int i = 0;
#pragma unroll 1
  for (; i + kSteps * kStride<kWidth> <= length; i += kSteps * kStride<kWidth>) {
    loss += loss_of_steps<true, kWidth>(x + i, logits + i, 0);
  }
  loss += loss_of_steps<false, kWidth>(x + i, logits + i, length - i - first);
  loss = warp_sum(loss);
  if (lane() == 0) a.sums[row * a.pieces.count + blockIdx.y] = -loss;
}

// sigmoid(-|a|)
__device__ __forceinline__ float sigmoid_tail(float logit) {
  const float e = decay(absolute(logit));
  return e * approximate_reciprocal(1 + e);
}
__device__ __forceinline__ double sigmoid_tail(double logit) { return bernoulli_tail(logit); }

// With kWidth > 1 the features are a multiple of it, so that a vector lies within one row.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, resident(8))
    bernoulli_gradients(const BernoulliLogLikelihoodBackward<T> a) {
  const int64_t index = thread_index() * kWidth;
  if (index >= a.models * a.samples * a.features) return;
  const accumulate_t<T> grad = a.grad[index / a.features];
  const auto x = load_vector<kWidth>(a.x + (a.shared ? index % (a.samples * a.features) : index));
  const auto logits = load_vector<kWidth>(a.logits + index);
  Vector<T, kWidth> grad_logits;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const auto logit = load(logits.at[j]);
    store(grad * bernoulli_slope(load(x.at[j]), logit, sigmoid_tail(logit)), grad_logits.at[j]);
  }
  store_vector(a.grad_logits + index, grad_logits);
}

}  // namespace cuda

template <class T>
void bernoulli_log_likelihood(Cuda device, const BernoulliLogLikelihood<T>& a) {
  using namespace cuda;
  constexpr int kWidth = kFullWidth<T>;
  const int64_t rows = a.models * a.samples;
  const bool vectors = a.features % kWidth == 0 && are_aligned<kWidth>(a.x, a.logits);
  launch(vectors ? &bernoulli_rows<T, kWidth> : &bernoulli_rows<T, 1>, blocks_of_pieces(rows, a.pieces), kPieceThreads,
         device, a);
  if (a.pieces.count > 1) {
    launch(&piece_sums<accumulate_t<T>>, blocks_of_rows(rows), kThreads, device, rows, a.pieces.count, a.sums, a.value);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, bernoulli_log_likelihood, BernoulliLogLikelihood)

template <class T>
void bernoulli_log_likelihood_backward(Cuda device, const BernoulliLogLikelihoodBackward<T>& a) {
  using namespace cuda;
  constexpr int kWidth = kFullWidth<T>;
  const int64_t count = a.models * a.samples * a.features;
  if (a.features % kWidth == 0 && are_aligned<kWidth>(a.x, a.logits, a.grad_logits)) {
    launch(&bernoulli_gradients<T, kWidth>, blocks_of_threads(count / kWidth), kThreads, device, a);
  } else {
    launch(&bernoulli_gradients<T, 1>, blocks_of_threads(count), kThreads, device, a);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, bernoulli_log_likelihood_backward, BernoulliLogLikelihoodBackward)

}  // namespace lineavae
