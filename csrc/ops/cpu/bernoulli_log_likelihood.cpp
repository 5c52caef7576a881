// One pass over the rows in memory order, rows split over threads. The sum over the features of a row is vectorised in
// the accumulation type, so the result does not depend on the number of threads.
#include "ops/bernoulli_log_likelihood.h"

#include "common/cpu.h"

namespace lineavae {

template <class T>
LINEAVAE_INLINE void bernoulli_log_likelihood_body(const BernoulliLogLikelihood<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = a.x + (a.shared ? row % a.samples : row) * a.features;
    const T* logits = a.logits + row * a.features;
    accumulate_t<T> loss = 0;
#pragma omp simd reduction(+ : loss)
    for (int64_t i = 0; i < a.features; ++i) loss += bernoulli_loss(load(x[i]), load(logits[i]));
    a.value[row] = -loss;
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, bernoulli_log_likelihood, BernoulliLogLikelihood, (a.models * a.samples),
                    a.features)

template <class T>
LINEAVAE_INLINE void bernoulli_log_likelihood_backward_body(const BernoulliLogLikelihoodBackward<T>& a, int64_t begin,
                                                            int64_t end) {
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
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, bernoulli_log_likelihood_backward, BernoulliLogLikelihoodBackward,
                    (a.models * a.samples), a.features)

}  // namespace lineavae
