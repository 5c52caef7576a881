// One pass over the rows in memory order, rows split over threads. The sum over the features of a row is vectorised in
// the accumulation type, so the result does not depend on the number of threads.
#include "ops/bernoulli_log_likelihood.h"

#include "common/cpu.h"

namespace lineavae {
namespace {

template <class T>
LINEAVAE_INLINE void body(const BernoulliLogLikelihood<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
    const T* logits = a.logits + row * a.features;
    accumulate_t<T> loss = 0;
#pragma omp simd reduction(+ : loss)
    for (int64_t i = 0; i < a.features; ++i) loss += bernoulli_loss(load(x[i]), load(logits[i]));
    a.value[row] = -loss;
  }
}

template <class T>
LINEAVAE_INLINE void body(const BernoulliLogLikelihoodBackward<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
    const T* logits = a.logits + row * a.features;
    T* grad_logits = a.grad_logits + row * a.features;
    const accumulate_t<T> grad = a.grad[row];
#pragma omp simd
    for (int64_t i = 0; i < a.features; ++i) {
      store(grad * bernoulli_slope(load(x[i]), load(logits[i])), grad_logits[i]);
    }
  }
}

#define LINEAVAE_CLONE(Arguments) \
  LINEAVAE_CLONES void clone(const Arguments& a, int64_t begin, int64_t end) { body(a, begin, end); }
#define LINEAVAE_CLONE_BOTH(T)              \
  LINEAVAE_CLONE(BernoulliLogLikelihood<T>) \
  LINEAVAE_CLONE(BernoulliLogLikelihoodBackward<T>)
LINEAVAE_CLONE_BOTH(float)
LINEAVAE_CLONE_BOTH(double)
LINEAVAE_CLONE_BOTH(Float16)
LINEAVAE_CLONE_BOTH(BFloat16)

template <class Arguments>
void over_rows(const Arguments& a) {
  parallel_for(a.models * a.samples, a.features, [&](int64_t begin, int64_t end) { clone(a, begin, end); });
}

}  // namespace

template <class T>
void bernoulli_log_likelihood(Cpu, const BernoulliLogLikelihood<T>& a) {
  over_rows(a);
}

template <class T>
void bernoulli_log_likelihood_backward(Cpu, const BernoulliLogLikelihoodBackward<T>& a) {
  over_rows(a);
}

#define LINEAVAE_INSTANTIATE(T)                                                  \
  template void bernoulli_log_likelihood(Cpu, const BernoulliLogLikelihood<T>&); \
  template void bernoulli_log_likelihood_backward(Cpu, const BernoulliLogLikelihoodBackward<T>&);
LINEAVAE_INSTANTIATE(float)
LINEAVAE_INSTANTIATE(double)
LINEAVAE_INSTANTIATE(Float16)
LINEAVAE_INSTANTIATE(BFloat16)

}  // namespace lineavae
