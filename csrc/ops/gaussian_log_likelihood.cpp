// Schemas and shape rules of gaussian_log_likelihood and gaussian_log_likelihood_mean, once for both devices: x
// (M or 1, N, D), log_sigma2 (M or 1, N or 1, D or 1). The gradient of log_sigma2 is per model even where it is shared.
#include "ops/gaussian_log_likelihood.h"

#include <tuple>

#include "common/backend.h"

namespace lineavae {
namespace {

void check(const char* op, const Tensor& x, const Tensor& x_hat, const Tensor& log_sigma2) {
  STD_TORCH_CHECK(x_hat.dim() == 3 && x.dim() == 3 && log_sigma2.dim() == 3, op, ": x must have shape (M, N, D)");
  const int64_t M = x_hat.size(0), N = x_hat.size(1), D = x_hat.size(2);
  check_shape(op, "x", x, {x.size(0) == 1 ? 1 : M, N, D});
  check_shape(op, "log_sigma2", log_sigma2,
              {log_sigma2.size(0) == 1 ? 1 : M, log_sigma2.size(1) == 1 ? 1 : N, log_sigma2.size(2) == 1 ? 1 : D});
  check_like(op, "x", x, x_hat);
  check_like(op, "log_sigma2", log_sigma2, x_hat);
}

Noise noise_of(const Tensor& log_sigma2) {
  if (log_sigma2.size(2) == 1) return Noise::kRow;
  return log_sigma2.size(1) == 1 ? Noise::kFeature : Noise::kElement;
}

template <class T>
GaussianData<T> data_of(const Tensor& x, const Tensor& x_hat, const Tensor& log_sigma2) {
  const int64_t M = x_hat.size(0), N = x_hat.size(1), D = x_hat.size(2);
  const int64_t of_sample = log_sigma2.size(1) == 1 ? 0 : log_sigma2.size(2);
  const int64_t of_model = log_sigma2.size(0) == 1 ? 0 : log_sigma2.size(1) * log_sigma2.size(2);
  return {noise_of(log_sigma2), M, N, D, x.size(0) == 1 && M > 1, of_model, of_sample, input<T>(x), input<T>(x_hat),
          input<T>(log_sigma2)};
}

// The gradients, and the memory to make them in.
template <class Device>
class Gradients {
 public:
  Gradients(const Tensor& x_hat, const Tensor& log_sigma2, ScalarType sum_dtype)
      : x_hat(empty({x_hat.size(0), x_hat.size(1), x_hat.size(2)}, x_hat)),
        log_sigma2(empty({x_hat.size(0), log_sigma2.size(1), log_sigma2.size(2)}, x_hat)),
        parts_(gaussian_parts(Device{}, x_hat.size(0), x_hat.size(1), x_hat.size(2))),
        per_feature_(noise_of(log_sigma2) == Noise::kFeature),
        squares_(empty({per_feature_ ? x_hat.size(0) : 0, parts_, x_hat.size(2)}, x_hat, sum_dtype)),
        grad_sums_(empty({per_feature_ ? x_hat.size(0) : 0, parts_}, x_hat, sum_dtype)) {}

  template <class T>
  GaussianGradients<T> of() {
    return {output<T>(x_hat), output<T>(log_sigma2), parts_, output<accumulate_t<T>>(squares_),
            output<accumulate_t<T>>(grad_sums_)};
  }

  Tensor x_hat, log_sigma2;

 private:
  int64_t parts_;
  bool per_feature_;
  Tensor squares_, grad_sums_;
};

// -> value, distortion
template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& x_, const Tensor& x_hat_, const Tensor& log_sigma2_) {
  using torch::stable::contiguous;
  constexpr const char* kOp = "gaussian_log_likelihood";
  check(kOp, x_, x_hat_, log_sigma2_);
  const Tensor x = contiguous(x_), x_hat = contiguous(x_hat_), log_sigma2 = contiguous(log_sigma2_);
  Tensor value = empty({x_hat.size(0), x_hat.size(1)}, x, value_dtype(x));
  Tensor distortion = empty({x_hat.size(0), x_hat.size(1)}, x, value_dtype(x));
  const Backend<Device> backend(x_hat);
  dispatch_all_floating(kOp, x, [&]<class T>() {
    gaussian_log_likelihood(backend.device(),
                            GaussianLogLikelihood<T>{data_of<T>(x, x_hat, log_sigma2), output<accumulate_t<T>>(value),
                                                     output<accumulate_t<T>>(distortion)});
  });
  return {value, distortion};
}

// -> grad_x_hat, grad_log_sigma2
template <class Device>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& x_, const Tensor& x_hat_,
                                    const Tensor& log_sigma2_, const Tensor& distortion_) {
  using torch::stable::contiguous;
  constexpr const char* kOp = "gaussian_log_likelihood_backward";
  check(kOp, x_, x_hat_, log_sigma2_);
  check_shape(kOp, "grad", grad_, {x_hat_.size(0), x_hat_.size(1)});
  check_shape(kOp, "distortion", distortion_, {x_hat_.size(0), x_hat_.size(1)});
  STD_TORCH_CHECK(grad_.scalar_type() == value_dtype(x_) && distortion_.scalar_type() == value_dtype(x_), kOp,
                  ": grad and distortion must have the dtype of the value");
  const Tensor grad = contiguous(grad_), distortion = contiguous(distortion_);
  const Tensor x = contiguous(x_), x_hat = contiguous(x_hat_), log_sigma2 = contiguous(log_sigma2_);
  const Backend<Device> backend(x_hat);
  Gradients<Device> gradients(x_hat, log_sigma2, value_dtype(x));
  dispatch_all_floating(kOp, x, [&]<class T>() {
    gaussian_log_likelihood_backward(
        backend.device(),
        GaussianLogLikelihoodBackward<T>{data_of<T>(x, x_hat, log_sigma2), input<accumulate_t<T>>(grad),
                                         input<accumulate_t<T>>(distortion), gradients.template of<T>()});
  });
  return {gradients.x_hat, gradients.log_sigma2};
}

// -> mean, and the gradients of the loss, -mean: grad_x_hat, grad_log_sigma2
template <class Device>
std::tuple<Tensor, Tensor, Tensor> mean(const Tensor& x_, const Tensor& x_hat_, const Tensor& log_sigma2_) {
  using torch::stable::contiguous;
  constexpr const char* kOp = "gaussian_log_likelihood_mean";
  check(kOp, x_, x_hat_, log_sigma2_);
  const Tensor x = contiguous(x_), x_hat = contiguous(x_hat_), log_sigma2 = contiguous(log_sigma2_);
  const Backend<Device> backend(x_hat);
  Tensor mean = empty({x_hat.size(0)}, x);
  Tensor value = empty({x_hat.size(0), x_hat.size(1)}, x), distortion = empty({x_hat.size(0), x_hat.size(1)}, x);
  Gradients<Device> gradients(x_hat, log_sigma2, x.scalar_type());
  dispatch_floating(kOp, x, [&]<class T>() {
    gaussian_log_likelihood_mean(
        backend.device(),
        GaussianLogLikelihoodMean<T>{data_of<T>(x, x_hat, log_sigma2), output<T>(mean), output<T>(value),
                                     output<T>(distortion), gradients.template of<T>()});
  });
  return {mean, gradients.x_hat, gradients.log_sigma2};
}

template <class Device>
void implement(Library& library) {
  library.impl("gaussian_log_likelihood", TORCH_BOX(&forward<Device>));
  library.impl("gaussian_log_likelihood_backward", TORCH_BOX(&backward<Device>));
  library.impl("gaussian_log_likelihood_mean", TORCH_BOX(&mean<Device>));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def(
      "gaussian_log_likelihood(Tensor x, Tensor x_hat, Tensor log_sigma2) -> (Tensor value, Tensor distortion)");
  library.def(
      "gaussian_log_likelihood_backward(Tensor grad, Tensor x, Tensor x_hat, Tensor log_sigma2, Tensor distortion) -> "
      "(Tensor grad_x_hat, Tensor grad_log_sigma2)");
  library.def(
      "gaussian_log_likelihood_mean(Tensor x, Tensor x_hat, Tensor log_sigma2) -> "
      "(Tensor mean, Tensor grad_x_hat, Tensor grad_log_sigma2)");
}

LINEAVAE_IMPLEMENT(implement)
