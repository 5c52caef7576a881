// Schemas and shape rules of gaussian_kl and gaussian_kl_per_dimension, once for both devices.
#include "ops/gaussian_kl.h"

#include <optional>

#include "common/backend.h"

namespace lineavae {
namespace {

Tensor empty_value(Reduction reduction, const Tensor& mean) {
  return reduction == Reduction::kRow ? empty({mean.size(0)}, mean, value_dtype(mean))
                                      : empty({mean.size(0), mean.size(1)}, mean, value_dtype(mean));
}

void check(const char* op, const Tensor& mean, const Tensor& logvar) {
  STD_TORCH_CHECK(mean.dim() == 2, op, ": mean must have shape (N, K)");
  check_shape(op, "logvar", logvar, {mean.size(0), mean.size(1)});
  check_like(op, "logvar", logvar, mean);
}

template <Reduction R, class Device>
Tensor value(const Tensor& mean, const Tensor& logvar, const std::optional<Tensor>& kl_weight) {
  constexpr const char* kOp = R == Reduction::kRow ? "gaussian_kl" : "gaussian_kl_per_dimension";
  check(kOp, mean, logvar);
  const Tensor m = torch::stable::contiguous(mean), t = torch::stable::contiguous(logvar);
  const std::optional<Tensor> w = checked_kl_weight(kOp, kl_weight, mean, mean.size(0));
  Tensor kl = empty_value(R, mean);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    gaussian_kl(backend.device(), GaussianKL<T>{R, m.size(0), m.size(1), input<T>(m), input<T>(t),
                                                input_kl_weight<T>(w), output<accumulate_t<T>>(kl)});
  });
  return kl;
}

template <Reduction R, class Device>
std::tuple<Tensor, Tensor> gradients(const Tensor& grad, const Tensor& mean, const Tensor& logvar,
                                     const std::optional<Tensor>& kl_weight) {
  constexpr const char* kOp = R == Reduction::kRow ? "gaussian_kl_backward" : "gaussian_kl_per_dimension_backward";
  check(kOp, mean, logvar);
  if (R == Reduction::kRow) {
    check_shape(kOp, "grad", grad, {mean.size(0)});
  } else {
    check_shape(kOp, "grad", grad, {mean.size(0), mean.size(1)});
  }
  STD_TORCH_CHECK(grad.scalar_type() == value_dtype(mean), kOp, ": grad must have the dtype of the value");
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor m = torch::stable::contiguous(mean), t = torch::stable::contiguous(logvar);
  const std::optional<Tensor> w = checked_kl_weight(kOp, kl_weight, mean, mean.size(0));
  Tensor grad_mean = empty({m.size(0), m.size(1)}, mean), grad_logvar = empty({m.size(0), m.size(1)}, mean);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    gaussian_kl_backward(backend.device(), GaussianKLBackward<T>{R, m.size(0), m.size(1), input<accumulate_t<T>>(g),
                                                                 input<T>(m), input<T>(t), input_kl_weight<T>(w),
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
