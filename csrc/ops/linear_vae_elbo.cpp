// linear_vae_elbo on tensors: x (M or 1, N, D). The products go through torch, everything between them through the
// kernels of linear_vae_elbo.h.
#include "ops/linear_vae_elbo.h"

#include <tuple>

#include "common/backend.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "linear_vae_elbo";

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// -> elbo, distortion, centred, code, residual, column_norms
template <class Device>
Outputs forward(const Tensor& x_, const Tensor& weight_, const Tensor& encoder_, const Tensor& mu_,
                const Tensor& log_d_, const Tensor& log_sigma2_, const Tensor& beta_) {
  const auto [M, D, K] = sizes_of<3>(kOp, "weight", weight_);
  const int64_t N = sizes_of<3>(kOp, "x", x_)[1];
  const Checked checked(kOp, weight_);
  const Tensor x = checked("x", x_, {one_or(M, x_), N, D}), weight = checked("weight", weight_, {M, D, K});
  const Tensor encoder = checked("encoder", encoder_, {M, K, D}), mu = checked("mu", mu_, {M, D});
  const Tensor log_d = checked("log_d", log_d_, {M, K}), log_sigma2 = checked("log_sigma2", log_sigma2_, {M});
  const Tensor beta = checked("beta", beta_, {M});
  const Backend<Device> backend(weight);
  Tensor centred = empty({M, N, D}, x), norms = empty({M, K}, x);
  Tensor spread = empty({M}, x, ScalarType::Double), divergence = empty({M}, x, ScalarType::Double);
  dispatch_floating(kOp, x, [&]<class T>() {
    centre(backend.device(),
           CentreArguments<T>{M, N, D, x.size(0) == 1 && M > 1, input<T>(x), input<T>(mu), output<T>(centred)});
    column_norms(backend.device(), ColumnNormArguments<T>{M, D, K, input<T>(weight), output<T>(norms)});
    latent_constants(backend.device(), LatentConstants<T>{M, K, input<T>(norms), input<T>(log_d),
                                                          output<double>(spread), output<double>(divergence)});
  });
  Tensor code = product(centred, transposed(encoder));
  Tensor errors = product(code, transposed(weight));
  Tensor elbo = empty({M, N}, x), distortion = empty({M, N}, x, ScalarType::Double);
  dispatch_floating(kOp, x, [&]<class T>() {
    residual(backend.device(),
             ResidualArguments<T>{M, N, D, K, input<T>(centred), input<T>(code), input<double>(spread),
                                  input<double>(divergence), input<T>(log_sigma2), input<T>(beta), output<T>(errors),
                                  output<double>(distortion), output<T>(elbo)});
  });
  return {elbo, distortion, centred, code, errors, norms};
}

// -> grad_code, grad_weight, grad_encoder, grad_mu, grad_log_d, grad_log_sigma2
template <class Device>
Outputs backward(const Tensor& grad_, const Tensor& weight_, const Tensor& encoder_, const Tensor& log_d_,
                 const Tensor& log_sigma2_, const Tensor& beta_, const Tensor& distortion_, const Tensor& centred_,
                 const Tensor& code_, const Tensor& residual_, const Tensor& column_norms_) {
  const auto [M, D, K] = sizes_of<3>(kOp, "weight", weight_);
  const int64_t N = sizes_of<3>(kOp, "centred", centred_)[1];
  const Checked checked(kOp, weight_);
  const Tensor grad = checked("grad", grad_, {M, N}), weight = checked("weight", weight_, {M, D, K});
  const Tensor encoder = checked("encoder", encoder_, {M, K, D}), log_d = checked("log_d", log_d_, {M, K});
  const Tensor log_sigma2 = checked("log_sigma2", log_sigma2_, {M}), beta = checked("beta", beta_, {M});
  const Tensor distortion = checked("distortion", distortion_, {M, N}, ScalarType::Double);
  const Tensor centred = checked("centred", centred_, {M, N, D}), code = checked("code", code_, {M, N, K});
  const Tensor residual = checked("residual", residual_, {M, N, D});
  const Tensor norms = checked("column_norms", column_norms_, {M, K});
  const Backend<Device> backend(weight);
  Tensor grad_code = product(residual, weight), scaled_code = empty({M, N, scaled_columns(K)}, weight);
  dispatch_floating(kOp, weight, [&]<class T>() {
    code_gradients(backend.device(), CodeGradients<T>{M, N, K, input<T>(grad), input<T>(log_sigma2), input<T>(beta),
                                                      input<T>(code), output<T>(grad_code), output<T>(scaled_code)});
  });
  Tensor residual_sums = product(transposed(residual), scaled_code);
  Tensor grad_encoder = product(transposed(grad_code), centred);
  const Tensor residual_sum = torch::stable::narrow(residual_sums, 2, K, 1);
  const Tensor residual_pull = torch::stable::squeeze(product(transposed(weight), residual_sum), -1);
  const Tensor code_sum = product_with_vector(transposed(code), grad);
  Tensor weight_scale = empty({M, K}, weight, ScalarType::Double), encoder_pull = empty({M, K}, weight);
  Tensor grad_log_d = empty({M, K}, weight), grad_log_sigma2 = empty({M}, weight);
  dispatch_floating(kOp, weight, [&]<class T>() {
    sample_sums(backend.device(),
                SampleSums<T>{M, N, K, static_cast<double>(D), input<T>(grad), input<double>(distortion),
                              input<T>(log_d), input<T>(log_sigma2), input<T>(beta), input<T>(norms),
                              input<T>(residual_pull), input<T>(code_sum), output<double>(weight_scale),
                              output<T>(encoder_pull), output<T>(grad_log_d), output<T>(grad_log_sigma2)});
  });
  const Tensor pulled = product_with_vector(transposed(encoder), encoder_pull);
  Tensor grad_weight = empty({M, D, K}, weight), grad_mu = empty({M, D}, weight);
  dispatch_floating(kOp, weight, [&]<class T>() {
    decoder_gradients(
        backend.device(),
        DecoderGradients<T>{M, D, K, input<T>(log_sigma2), input<T>(weight), input<double>(weight_scale),
                            input<T>(residual_sums), input<T>(pulled), output<T>(grad_weight), output<T>(grad_mu)});
  });
  return {grad_code, grad_weight, grad_encoder, grad_mu, grad_log_d, grad_log_sigma2};
}

template <class Device>
void implement(Library& library) {
  library.impl("linear_vae_elbo", TORCH_BOX(&forward<Device>));
  library.impl("linear_vae_elbo_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def(
      "linear_vae_elbo(Tensor x, Tensor weight, Tensor encoder, Tensor mu, Tensor log_d, Tensor log_sigma2, "
      "Tensor beta) -> (Tensor elbo, Tensor distortion, Tensor centred, Tensor code, Tensor residual, "
      "Tensor column_norms)");
  library.def(
      "linear_vae_elbo_backward(Tensor grad, Tensor weight, Tensor encoder, Tensor log_d, Tensor log_sigma2, "
      "Tensor beta, Tensor distortion, Tensor centred, Tensor code, Tensor residual, Tensor column_norms) -> "
      "(Tensor grad_code, Tensor grad_weight, Tensor grad_encoder, Tensor grad_mu, Tensor grad_log_d, "
      "Tensor grad_log_sigma2)");
}

LINEAVAE_IMPLEMENT(implement)
