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
  const auto [M, D, K] = sizes_of<3>(kOp, "weight", weight_);
  const int64_t N = sizes_of<3>(kOp, "x", x_)[1];
  const Checked checked(kOp, weight_);
  const Tensor x = checked("x", x_, {one_or(M, x_), N, D}), mean = checked("mean", mean_, {M, N, K});
  const Tensor logvar = checked("logvar", logvar_, {M, N, K}), weight = checked("weight", weight_, {M, D, K});
  const Tensor bias = checked("bias", bias_, {M, D});
  const Backend<Device> backend(weight);
  Tensor variance = empty({M, N, K}, x), squared_weight = empty({M, D, K}, x), value = empty({M, N}, x),
         scale = empty({M, N}, x);
  const Pieces pieces = pieces_of(backend.device(), M * N, D);
  Tensor sums = piece_sums(value, pieces.count);
  dispatch_floating(kOp, x, [&]<class T>() {
    variances(backend.device(), Variances<T>{M * N, K, input<T>(logvar), output<T>(variance), output<T>(scale)});
    squared_weights(backend.device(), SquaredWeights<T>{M * D * K, input<T>(weight), output<T>(squared_weight)});
  });
  Tensor slope = product(mean, transposed(weight));
  Tensor curvature = product(variance, transposed(squared_weight));
  dispatch_floating(kOp, x, [&]<class T>() {
    expected_bernoulli(
        backend.device(),
        ExpectedBernoulli<T>{M, N, D, x.size(0) == 1 && M > 1, input<T>(x), input<T>(bias), input<T>(scale), pieces,
                             output<T>(sums), output<T>(value), output<T>(slope), output<T>(curvature)});
  });
  return {value, slope, curvature, variance, squared_weight};
}

// -> grad_mean, grad_logvar, grad_weight, grad_bias
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& mean_, const Tensor& weight_,
                                                    const Tensor& slope_, const Tensor& curvature_,
                                                    const Tensor& variance_, const Tensor& squared_weight_) {
  const auto [M, D, K] = sizes_of<3>(kOp, "weight", weight_);
  const int64_t N = sizes_of<3>(kOp, "slope", slope_)[1];
  const Checked checked(kOp, weight_);
  const Tensor grad = checked("grad", grad_, {M, N}), mean = checked("mean", mean_, {M, N, K});
  const Tensor weight = checked("weight", weight_, {M, D, K}), slope = checked("slope", slope_, {M, N, D});
  const Tensor curvature = checked("curvature", curvature_, {M, N, D});
  const Tensor variance = checked("variance", variance_, {M, N, K});
  const Tensor squared_weight = checked("squared_weight", squared_weight_, {M, D, K});
  const Backend<Device> backend(weight);
  Tensor grad_mean = product(slope, weight), grad_logvar = product(curvature, squared_weight);
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
