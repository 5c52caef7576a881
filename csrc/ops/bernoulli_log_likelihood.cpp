// Schema and shape rules of bernoulli_log_likelihood, once for both devices.
#include "ops/bernoulli_log_likelihood.h"

#include "common/backend.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "bernoulli_log_likelihood";

ScalarType value_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check(const Tensor& x, const Tensor& logits) {
  STD_TORCH_CHECK(x.dim() == 2, kOp, ": x must have shape (N, D)");
  check_shape(kOp, "logits", logits, {x.size(0), x.size(1)});
  check_like(kOp, "logits", logits, x);
}

template <class Device>
Tensor forward(const Tensor& x_, const Tensor& logits_) {
  check(x_, logits_);
  const Tensor x = torch::stable::contiguous(x_), logits = torch::stable::contiguous(logits_);
  Tensor value = empty({x.size(0)}, x, value_dtype(x));
  const Backend<Device> backend(x);
  dispatch_all_floating(kOp, x, [&]<class T>() {
    bernoulli_log_likelihood(
        backend.device(),
        BernoulliLogLikelihood<T>{x.size(0), x.size(1), input<T>(x), input<T>(logits), output<accumulate_t<T>>(value)});
  });
  return value;
}

// -> grad_logits
template <class Device>
Tensor backward(const Tensor& grad_, const Tensor& x_, const Tensor& logits_) {
  check(x_, logits_);
  check_shape(kOp, "grad", grad_, {x_.size(0)});
  STD_TORCH_CHECK(grad_.scalar_type() == value_dtype(x_), kOp, ": grad must have the dtype of the value");
  const Tensor grad = torch::stable::contiguous(grad_);
  const Tensor x = torch::stable::contiguous(x_), logits = torch::stable::contiguous(logits_);
  Tensor grad_logits = empty({x.size(0), x.size(1)}, x);
  const Backend<Device> backend(x);
  dispatch_all_floating(kOp, x, [&]<class T>() {
    bernoulli_log_likelihood_backward(
        backend.device(), BernoulliLogLikelihoodBackward<T>{x.size(0), x.size(1), input<accumulate_t<T>>(grad),
                                                            input<T>(x), input<T>(logits), output<T>(grad_logits)});
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
