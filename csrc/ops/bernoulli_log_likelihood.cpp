// Schema and shape rules of bernoulli_log_likelihood, once for both devices: x (M or 1, N, D).
#include "ops/bernoulli_log_likelihood.h"

#include "common/backend.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "bernoulli_log_likelihood";

template <class Device>
Tensor forward(const Tensor& x_, const Tensor& logits_) {
  const auto [M, N, D] = sizes_of<3>(kOp, "logits", logits_);
  const Checked checked(kOp, logits_);
  const Tensor x = checked("x", x_, {one_or(M, x_), N, D}), logits = checked("logits", logits_, {M, N, D});
  const Backend<Device> backend(logits);
  const Pieces pieces = pieces_of(backend.device(), M * N, D);
  Tensor value = empty({M, N}, logits, value_dtype(logits));
  Tensor sums = piece_sums(value, pieces.count);
  dispatch_all_floating(kOp, logits, [&]<class T>() {
    using A = accumulate_t<T>;
    bernoulli_log_likelihood(backend.device(),
                             BernoulliLogLikelihood<T>{M, N, D, x.size(0) == 1 && M > 1, input<T>(x), input<T>(logits),
                                                       pieces, output<A>(sums), output<A>(value)});
  });
  return value;
}

// -> grad_logits
template <class Device>
Tensor backward(const Tensor& grad_, const Tensor& x_, const Tensor& logits_) {
  const auto [M, N, D] = sizes_of<3>(kOp, "logits", logits_);
  const Checked checked(kOp, logits_);
  const Tensor grad = checked("grad", grad_, {M, N}, value_dtype(logits_));
  const Tensor x = checked("x", x_, {one_or(M, x_), N, D}), logits = checked("logits", logits_, {M, N, D});
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
