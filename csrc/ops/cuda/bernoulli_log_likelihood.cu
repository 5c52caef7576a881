// Row sums: a block per row, kWidth features per thread and step, then a sum over the block. Gradients: kWidth elements
// per thread. Everything is read and written once; accumulation is in float, or double for double. Deterministic.
#include "common/cuda.cuh"
#include "ops/bernoulli_log_likelihood.h"

namespace lineavae {
namespace cuda {

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) bernoulli_rows(const BernoulliLogLikelihood<T> a) {
  using A = accumulate_t<T>;
  LINEAVAE_SHARED(partial, A[kWarps]);
  const int64_t row = blockIdx.x;
  const T* x_row = a.x + (a.shared ? row % a.samples : row) * a.features;
  A loss = 0;
#pragma unroll 1
  for (int64_t i = int64_t{threadIdx.x} * kWidth; i < a.features; i += kThreads * kWidth) {
    const auto x = load_vector<kWidth>(x_row + i);
    const auto logits = load_vector<kWidth>(a.logits + row * a.features + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) loss += bernoulli_loss(load(x.at[j]), load(logits.at[j]));
  }
  loss = block_sum(loss, partial);
  if (threadIdx.x == 0) a.value[row] = -loss;
}

// With kWidth > 1 the features are a multiple of it, so that a vector lies within one row.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) bernoulli_gradients(const BernoulliLogLikelihoodBackward<T> a) {
  const int64_t index = thread_index() * kWidth;
  if (index >= a.models * a.samples * a.features) return;
  const accumulate_t<T> grad = a.grad[index / a.features];
  const auto x = load_vector<kWidth>(a.x + (a.shared ? index % (a.samples * a.features) : index));
  const auto logits = load_vector<kWidth>(a.logits + index);
  Vector<T, kWidth> grad_logits;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    store(grad * bernoulli_slope(load(x.at[j]), load(logits.at[j])), grad_logits.at[j]);
  }
  store_vector(a.grad_logits + index, grad_logits);
}

}  // namespace cuda

template <class T>
void bernoulli_log_likelihood(Cuda device, const BernoulliLogLikelihood<T>& a) {
  using namespace cuda;
  constexpr int kWidth = kFullWidth<T>;
  const bool vectors = a.features % kWidth == 0 && are_aligned<kWidth>(a.x, a.logits);
  launch(vectors ? &bernoulli_rows<T, kWidth> : &bernoulli_rows<T, 1>, blocks(a.models * a.samples), kThreads, device,
         a);
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
