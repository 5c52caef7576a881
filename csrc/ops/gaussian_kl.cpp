// Schemas and shape rules of gaussian_kl and gaussian_kl_per_dimension, once for both devices.
#include "ops/gaussian_kl.h"

#include <optional>

#include "common/backend.h"

namespace lineavae {
namespace {

template <Reduction R, class Device>
Tensor value(const Tensor& mean_, const Tensor& logvar_, const std::optional<Tensor>& kl_weight) {
  constexpr const char* kOp = R == Reduction::kRow ? "gaussian_kl" : "gaussian_kl_per_dimension";
  const auto [N, K] = sizes_of<2>(kOp, "mean", mean_);
  const Checked checked(kOp, mean_);
  const Tensor mean = checked("mean", mean_, {N, K}), logvar = checked("logvar", logvar_, {N, K});
  const std::optional<Tensor> weight = checked.kl_weight(kl_weight, N, K);
  Tensor kl = R == Reduction::kRow ? empty({N}, mean, value_dtype(mean)) : empty({N, K}, mean, value_dtype(mean));
  const Backend<Device> backend(mean);
  Tensor sums = R == Reduction::kRow ? piece_sums(kl, most_pieces(backend.device(), K)) : kl;
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using A = accumulate_t<T>;
    gaussian_kl(backend.device(), GaussianKL<T>{R, N, K, input<T>(mean), input<T>(logvar), input_kl_weight<T>(weight),
                                                output<A>(kl), output<A>(sums)});
  });
  return kl;
}

template <Reduction R, class Device>
std::tuple<Tensor, Tensor> gradients(const Tensor& grad_, const Tensor& mean_, const Tensor& logvar_,
                                     const std::optional<Tensor>& kl_weight) {
  constexpr const char* kOp = R == Reduction::kRow ? "gaussian_kl_backward" : "gaussian_kl_per_dimension_backward";
  const auto [N, K] = sizes_of<2>(kOp, "mean", mean_);
  const Checked checked(kOp, mean_);
  const Tensor grad = R == Reduction::kRow ? checked("grad", grad_, {N}, value_dtype(mean_))
                                           : checked("grad", grad_, {N, K}, value_dtype(mean_));
  const Tensor mean = checked("mean", mean_, {N, K}), logvar = checked("logvar", logvar_, {N, K});
  const std::optional<Tensor> weight = checked.kl_weight(kl_weight, N, K);
  Tensor grad_mean = empty({N, K}, mean), grad_logvar = empty({N, K}, mean);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    gaussian_kl_backward(backend.device(), GaussianKLBackward<T>{R, N, K, input<accumulate_t<T>>(grad), input<T>(mean),
                                                                 input<T>(logvar), input_kl_weight<T>(weight),
                                                                 output<T>(grad_mean), output<T>(grad_logvar)});
  });
  return {grad_mean, grad_logvar};
}

template <class Device>
Tensor per_dimension(const Tensor& mean, const Tensor& logvar) {
  return value<Reduction::kNone, Device>(mean, logvar, std::nullopt);
}

template <class Device>
std::tuple<Tensor, Tensor> per_dimension_backward(const Tensor& grad, const Tensor& mean, const Tensor& logvar) {
  return gradients<Reduction::kNone, Device>(grad, mean, logvar, std::nullopt);
}

template <class Device>
void implement(Library& library) {
  library.impl("gaussian_kl", TORCH_BOX((&value<Reduction::kRow, Device>)));
  library.impl("gaussian_kl_backward", TORCH_BOX((&gradients<Reduction::kRow, Device>)));
  library.impl("gaussian_kl_per_dimension", TORCH_BOX((&per_dimension<Device>)));
  library.impl("gaussian_kl_per_dimension_backward", TORCH_BOX((&per_dimension_backward<Device>)));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def("gaussian_kl(Tensor mean, Tensor logvar, Tensor? kl_weight) -> Tensor");
  library.def("gaussian_kl_backward(Tensor grad, Tensor mean, Tensor logvar, Tensor? kl_weight) -> (Tensor, Tensor)");
  library.def("gaussian_kl_per_dimension(Tensor mean, Tensor logvar) -> Tensor");
  library.def("gaussian_kl_per_dimension_backward(Tensor grad, Tensor mean, Tensor logvar) -> (Tensor, Tensor)");
}

LINEAVAE_IMPLEMENT(implement)
