// Schema and shapes of linear_vae_ascent, once for both devices.
#include "ops/linear_vae_ascent.h"

#include <limits>
#include <tuple>
#include <type_traits>

#include "common/backend.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "linear_vae_ascent";

// For models that are larger than a block of the CUDA kernel; nothing waits for the device.
template <class T>
void ascend_by_products(Cuda device, const AscentArguments<T>& a, const Tensor& covariance, const Tensor& parameters) {
  const int64_t M = a.models, D = a.features, K = a.latents;
  const auto matrices = [&](int64_t begin) {
    Tensor flat = parameters;
    return torch::stable::view(torch::stable::narrow(flat, 1, begin, D * K), {M, D, K});
  };
  const Tensor shared = torch::stable::unsqueeze(covariance, 0), W = matrices(0), V = matrices(D * K);  // Vᵀ
  Tensor grad_log_d = empty({M, K}, parameters), distortion = empty({M}, parameters);
  for (int64_t step = 0; step < a.steps; ++step) {
    const Tensor C = product(shared, V);
    Tensor gram = product(transposed(W), W), aggregate = product(transposed(V), C);
    ProductStep<T> s{a,
                     step,
                     input<T>(C),
                     output<T>(gram),
                     output<T>(aggregate),
                     output<T>(grad_log_d),
                     output<T>(distortion),
                     nullptr,
                     nullptr};
    pull(device, s);
    const Tensor weight_pull = product(W, aggregate);
    const Tensor encoder_rise = product(shared, torch::stable::subtract(W, product(V, gram)));
    s.weight_pull = input<T>(weight_pull);
    s.encoder_rise = input<T>(encoder_rise);
    move(device, s);
  }
}

// -> parameters, first_moment, second_moment, active, steps_taken, gradient_norm
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ascent(const Tensor& covariance_, const Tensor& start_,
                                                                  const Tensor& first_, const Tensor& second_,
                                                                  const Tensor& lr_, const Tensor& beta_,
                                                                  const Tensor& trains_, int64_t step, double tolerance,
                                                                  bool learn_sigma2, int64_t omitted_features,
                                                                  double omitted_variance) {
  const auto [M, size] = sizes_of<2>(kOp, "parameters", start_);
  const auto [D, _] = sizes_of<2>(kOp, "covariance", covariance_);
  const int64_t S = sizes_of<2>(kOp, "lr", lr_)[1], K = (size - 1) / (2 * D + 1);
  STD_TORCH_CHECK(size == num_parameters(D, K), kOp, ": parameters must have shape (M, 2DK + K + 1) with D=", D,
                  ", got ", to_string(shape_of(start_)));
  const bool adam = sizes_of<2>(kOp, "first_moment", first_)[1] > 0;
  const Checked checked(kOp, start_);
  const Tensor covariance = checked("covariance", covariance_, {D, D}),
               start = checked("parameters", start_, {M, size});
  const Tensor first = checked("first_moment", first_, {M, adam ? size : 0});
  const Tensor second = checked("second_moment", second_, {M, adam ? size : 0});
  const Tensor lr = checked("lr", lr_, {M, S}), beta = checked("beta", beta_, {M, S});
  const Tensor trains = checked("active", trains_, {M}, ScalarType::Bool);
  Tensor parameters = empty({M, size}, start), active = empty({M}, start, ScalarType::Bool);
  Tensor first_moment = empty(shape_of(first), start), second_moment = empty(shape_of(second), start);
  Tensor steps_taken = empty({M}, start, ScalarType::Long), gradient_norm = empty({M}, start);
  Tensor corrections = empty({S, 2}, start, ScalarType::Double);
  const Backend<Device> backend(start);
  dispatch_floating(kOp, start, [&]<class T>() {
    auto* correction = reinterpret_cast<BiasCorrection*>(output<double>(corrections));
    bias_corrections(backend.device(), BiasCorrections<T>{S, step, correction});
    const AscentArguments<T> a{M,
                               D,
                               K,
                               S,
                               omitted_features,
                               adam,
                               learn_sigma2,
                               tolerance,
                               omitted_variance,
                               correction,
                               input<T>(covariance),
                               input<T>(lr),
                               input<T>(beta),
                               input<bool>(trains),
                               input<T>(start),
                               input<T>(first),
                               input<T>(second),
                               output<T>(parameters),
                               output<T>(first_moment),
                               output<T>(second_moment),
                               output<bool>(active),
                               output<int64_t>(steps_taken),
                               output<T>(gradient_norm)};
    if constexpr (std::is_same_v<Device, Cuda>) {
      if (D > kBlockFeatures || K > kBlockLatents) {
        for (auto& [from, to] : {std::tie(start, parameters), std::tie(first, first_moment),
                                 std::tie(second, second_moment), std::tie(trains, active)}) {
          torch::stable::copy_(to, from);
        }
        torch::stable::fill_(steps_taken, 0);
        torch::stable::fill_(gradient_norm, std::numeric_limits<double>::quiet_NaN());
        return ascend_by_products(backend.device(), a, covariance, parameters);
      }
    }
    ascend(backend.device(), a);
  });
  return {parameters, first_moment, second_moment, active, steps_taken, gradient_norm};
}

template <class Device>
void implement(Library& library) {
  library.impl("linear_vae_ascent", TORCH_BOX(&ascent<Device>));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def(
      "linear_vae_ascent(Tensor covariance, Tensor parameters, Tensor first_moment, Tensor second_moment, Tensor lr, "
      "Tensor beta, Tensor active, int step, float tolerance, bool learn_sigma2, int omitted_features, "
      "float omitted_variance) -> (Tensor parameters, Tensor first_moment, Tensor second_moment, Tensor active, "
      "Tensor steps_taken, Tensor gradient_norm)");
}

LINEAVAE_IMPLEMENT(implement)
