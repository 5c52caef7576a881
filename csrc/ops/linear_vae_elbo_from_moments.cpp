// Schemas of linear_vae_elbo_from_moments: sample_mean (M or 1, D), covariance (M or 1, D, D).
#include "ops/linear_vae_statistics_op.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "linear_vae_elbo_from_moments";

template <class Device>
StatisticsOutputs forward(const Tensor& sample_mean, const Tensor& covariance, const Tensor& weight,
                          const Tensor& encoder, const Tensor& mu, const Tensor& log_d, const Tensor& log_sigma2,
                          const Tensor& beta, int64_t num_features) {
  const Parameters parameters(kOp, weight, encoder, mu, log_d, log_sigma2, beta);
  const Statistics statistics = check_statistics(kOp, false, sample_mean, covariance, parameters);
  return statistics_forward<Device>(statistics, parameters, num_features);
}

template <class Device>
ParameterGradients backward(const Tensor& grad, const Tensor& sample_mean, const Tensor& covariance,
                            const Tensor& weight, const Tensor& encoder, const Tensor& mu, const Tensor& log_d,
                            const Tensor& log_sigma2, const Tensor& beta, const Tensor& distortion,
                            const Tensor& offset, const Tensor& encoded_offset, const Tensor& covariance_encoder,
                            const Tensor& gram, const Tensor& aggregate, int64_t num_features) {
  const Parameters parameters(kOp, weight, encoder, mu, log_d, log_sigma2, beta);
  const Statistics statistics = check_statistics(kOp, false, sample_mean, covariance, parameters);
  return statistics_backward<Device>(grad, statistics, parameters, distortion, offset, encoded_offset,
                                     covariance_encoder, gram, aggregate, num_features);
}

template <class Device>
void implement(Library& library) {
  library.impl("linear_vae_elbo_from_moments", TORCH_BOX(&forward<Device>));
  library.impl("linear_vae_elbo_from_moments_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def(
      "linear_vae_elbo_from_moments(Tensor sample_mean, Tensor covariance, Tensor weight, Tensor encoder, Tensor mu, "
      "Tensor log_d, Tensor log_sigma2, Tensor beta, int num_features) -> (Tensor elbo, Tensor distortion, "
      "Tensor offset, Tensor encoded_offset, Tensor covariance_encoder, Tensor gram, "
      "Tensor aggregate)");
  library.def(
      "linear_vae_elbo_from_moments_backward(Tensor grad, Tensor sample_mean, Tensor covariance, Tensor weight, "
      "Tensor encoder, Tensor mu, Tensor log_d, Tensor log_sigma2, Tensor beta, Tensor distortion, Tensor offset, "
      "Tensor encoded_offset, Tensor covariance_encoder, Tensor gram, Tensor aggregate, "
      "int num_features) -> (Tensor grad_weight, Tensor grad_encoder, Tensor grad_mu, Tensor grad_log_d, "
      "Tensor grad_log_sigma2)");
}

LINEAVAE_IMPLEMENT(implement)
