// Schema and shapes of linear_vae_ascent, once for both devices.
#include "ops/linear_vae_ascent.h"

#include <tuple>

#include "common/backend.h"

namespace lineavae {
namespace {

constexpr const char* kOp = "linear_vae_ascent";

// -> parameters, first_moment, second_moment, active, steps_taken, gradient_norm
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ascent(const Tensor& covariance_, const Tensor& start_,
                                                                  const Tensor& first_, const Tensor& second_,
                                                                  const Tensor& lr_, const Tensor& beta_,
                                                                  const Tensor& trains_, int64_t step, double tolerance,
                                                                  bool learn_sigma2) {
  const auto [M, size] = sizes_of<2>(kOp, "parameters", start_);
  const auto [D, _] = sizes_of<2>(kOp, "covariance", covariance_);
  const int64_t S = sizes_of<2>(kOp, "lr", lr_)[1], K = (size - 1) / (2 * D + 1);
  STD_TORCH_CHECK(size == num_parameters(D, K), kOp, ": parameters must have shape (M, 2DK + K + 1) with D=", D,
                  ", got ", to_string(shape_of(start_)));
  STD_TORCH_CHECK((std::is_same_v<Device, Cpu>) || (D <= kBlockFeatures && K <= kBlockLatents), kOp,
                  ": on CUDA D must be at most ", kBlockFeatures, " and K at most ", kBlockLatents, ", got D=", D,
                  " and K=", K);
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
    ascend(backend.device(), AscentArguments<T>{M,
                                                D,
                                                K,
                                                S,
                                                adam,
                                                learn_sigma2,
                                                tolerance,
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
                                                output<T>(gradient_norm)});
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
      "Tensor beta, Tensor active, int step, float tolerance, bool learn_sigma2) -> (Tensor parameters, "
      "Tensor first_moment, Tensor second_moment, Tensor active, Tensor steps_taken, Tensor gradient_norm)");
}

LINEAVAE_IMPLEMENT(implement)
