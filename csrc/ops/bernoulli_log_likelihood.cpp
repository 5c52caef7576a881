// Schema and shape rules of bernoulli_log_likelihood, once for both devices: x (M or 1, N, D).
#include "ops/bernoulli_log_likelihood.h"

#include "common/backend.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "bernoulli_log_likelihood";

void check(const Tensor& x, const Tensor& logits) {
  STD_TORCH_CHECK(x.dim() == 3 && logits.dim() == 3, kOp, ": x and logits must have shape (M, N, D)");
  check_shape(kOp, "x", x, {x.size(0) == 1 ? 1 : logits.size(0), logits.size(1), logits.size(2)});
  check_like(kOp, "x", x, logits);
}

template <class Device>
Tensor forward(const Tensor& x_, const Tensor& logits_) {
  check(x_, logits_);
  const Tensor x = torch::stable::contiguous(x_), logits = torch::stable::contiguous(logits_);
  const int64_t M = logits.size(0), N = logits.size(1), D = logits.size(2);
  Tensor value = empty({M, N}, logits, value_dtype(logits));
  const Backend<Device> backend(logits);
  dispatch_all_floating(kOp, logits, [&]<class T>() {
    bernoulli_log_likelihood(backend.device(),
                             BernoulliLogLikelihood<T>{M, N, D, x.size(0) == 1 && M > 1, input<T>(x), input<T>(logits),
                                                       output<accumulate_t<T>>(value)});
  });
  return value;
}

// -> grad_logits
template <class Device>
Tensor backward(const Tensor& grad_, const Tensor& x_, const Tensor& logits_) {
  check(x_, logits_);
  const int64_t M = logits_.size(0), N = logits_.size(1), D = logits_.size(2);
  check_shape(kOp, "grad", grad_, {M, N});
  STD_TORCH_CHECK(grad_.scalar_type() == value_dtype(logits_), kOp, ": grad must have the dtype of the value");
  const Tensor grad = torch::stable::contiguous(grad_);
  const Tensor x = torch::stable::contiguous(x_), logits = torch::stable::contiguous(logits_);
  Tensor grad_logits = empty({M, N, D}, logits);
  const Backend<Device> backend(logits);
  dispatch_all_floating(kOp, logits, [&]<class T>() {
    bernoulli_log_likelihood_backward(
        backend.device(),
        BernoulliLogLikelihoodBackward<T>{M, N, D, x.size(0) == 1 && M > 1, input<accumulate_t<T>>(grad), input<T>(x),
                                          input<T>(logits), output<T>(grad_logits)});
  });
  return grad_logits;
}

template <class Device>
void implement(Library& library) {
  library.impl("bernoulli_log_likelihood", TORCH_BOX(&forward<Device>));
  library.impl("bernoulli_log_likelihood_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def("bernoulli_log_likelihood(Tensor x, Tensor logits) -> Tensor");
  library.def("bernoulli_log_likelihood_backward(Tensor grad, Tensor x, Tensor logits) -> Tensor");
}

LINEAVAE_IMPLEMENT(implement)
