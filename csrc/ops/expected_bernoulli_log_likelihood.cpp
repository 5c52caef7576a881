// expected_bernoulli_log_likelihood on tensors: x (M or 1, N, D). The products go through torch, everything between
// them through the kernels of expected_bernoulli_log_likelihood.h.
#include "ops/expected_bernoulli_log_likelihood.h"

#include <tuple>

#include "common/backend.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "expected_bernoulli_log_likelihood";

// -> value, slope, curvature, variance, squared_weight
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x_, const Tensor& mean_, const Tensor& logvar_,
                                                           const Tensor& weight_, const Tensor& bias_) {
  using torch::stable::contiguous;
  STD_TORCH_CHECK(weight_.dim() == 3 && x_.dim() == 3, kOp, ": x must have shape (M, N, D), weight (M, D, K)");
  const int64_t M = weight_.size(0), D = weight_.size(1), K = weight_.size(2), N = x_.size(1);
  check_shape(kOp, "x", x_, {x_.size(0) == 1 ? 1 : M, N, D});
  check_shape(kOp, "mean", mean_, {M, N, K});
  check_shape(kOp, "logvar", logvar_, {M, N, K});
  check_shape(kOp, "bias", bias_, {M, D});
  for (const Tensor* tensor : {&x_, &mean_, &logvar_, &bias_}) check_like(kOp, "an argument", *tensor, weight_);
  const Tensor x = contiguous(x_), mean = contiguous(mean_), logvar = contiguous(logvar_);
  const Tensor weight = contiguous(weight_), bias = contiguous(bias_);
  const Backend<Device> backend(weight);
  Tensor variance = empty({M, N, K}, x), squared_weight = empty({M, D, K}, x), value = empty({M, N}, x),
         scale = empty({M, N}, x);
  dispatch_floating(kOp, x, [&]<class T>() {
    variances(backend.device(), Variances<T>{M * N, K, input<T>(logvar), output<T>(variance), output<T>(scale)});
    squared_weights(backend.device(), SquaredWeights<T>{M * D * K, input<T>(weight), output<T>(squared_weight)});
  });
  Tensor slope = product(mean, transposed(weight));
  Tensor curvature = product(variance, transposed(squared_weight));
  dispatch_floating(kOp, x, [&]<class T>() {
    expected_bernoulli(backend.device(),
                       ExpectedBernoulli<T>{M, N, D, x.size(0) == 1 && M > 1, input<T>(x), input<T>(bias),
                                            input<T>(scale), output<T>(value), output<T>(slope), output<T>(curvature)});
  });
  return {value, slope, curvature, variance, squared_weight};
}

// -> grad_mean, grad_logvar, grad_weight, grad_bias
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& mean_, const Tensor& weight_,
                                                    const Tensor& slope_, const Tensor& curvature_,
                                                    const Tensor& variance_, const Tensor& squared_weight_) {
  using torch::stable::contiguous;
  STD_TORCH_CHECK(weight_.dim() == 3 && slope_.dim() == 3, kOp, ": weight must have shape (M, D, K)");
  const int64_t M = weight_.size(0), D = weight_.size(1), K = weight_.size(2), N = slope_.size(1);
  check_shape(kOp, "grad", grad_, {M, N});
  check_shape(kOp, "mean", mean_, {M, N, K});
  check_shape(kOp, "slope", slope_, {M, N, D});
  check_shape(kOp, "curvature", curvature_, {M, N, D});
  check_shape(kOp, "variance", variance_, {M, N, K});
  check_shape(kOp, "squared_weight", squared_weight_, {M, D, K});
  for (const Tensor* tensor : {&grad_, &mean_, &slope_, &curvature_, &variance_, &squared_weight_}) {
    check_like(kOp, "an argument", *tensor, weight_);
  }
  const Tensor grad = contiguous(grad_), mean = contiguous(mean_), weight = contiguous(weight_);
  const Tensor slope = contiguous(slope_), curvature = contiguous(curvature_), variance = contiguous(variance_);
  const Backend<Device> backend(weight);
  Tensor grad_mean = product(slope, weight), grad_logvar = product(curvature, contiguous(squared_weight_));
  Tensor scaled_mean = empty({M, N, K}, weight), scaled_variance = empty({M, N, K}, weight);
  dispatch_floating(kOp, weight, [&]<class T>() {
    posterior_gradients(
        backend.device(),
        PosteriorGradients<T>{M, N, K, input<T>(grad), input<T>(mean), input<T>(variance), output<T>(grad_mean),
                              output<T>(grad_logvar), output<T>(scaled_mean), output<T>(scaled_variance)});
  });
  Tensor grad_weight = product(transposed(slope), scaled_mean);
  const Tensor by_square = product(transposed(curvature), scaled_variance);
  dispatch_floating(kOp, weight, [&]<class T>() {
    bernoulli_weight_gradient(
        backend.device(),
        BernoulliWeightGradient<T>{M * D * K, input<T>(weight), input<T>(by_square), output<T>(grad_weight)});
  });
  return {grad_mean, grad_logvar, grad_weight, product_with_vector(transposed(slope), grad)};
}

template <class Device>
void implement(Library& library) {
  library.impl("expected_bernoulli_log_likelihood", TORCH_BOX(&forward<Device>));
  library.impl("expected_bernoulli_log_likelihood_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def(
      "expected_bernoulli_log_likelihood(Tensor x, Tensor mean, Tensor logvar, Tensor weight, Tensor bias) -> "
      "(Tensor value, Tensor slope, Tensor curvature, Tensor variance, Tensor squared_weight)");
  library.def(
      "expected_bernoulli_log_likelihood_backward(Tensor grad, Tensor mean, Tensor weight, Tensor slope, "
      "Tensor curvature, Tensor variance, Tensor squared_weight) -> (Tensor grad_mean, Tensor grad_logvar, "
      "Tensor grad_weight, Tensor grad_bias)");
}

LINEAVAE_IMPLEMENT(implement)
