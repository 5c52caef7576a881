// Schemas and shape rules of gaussian_log_likelihood and gaussian_log_likelihood_mean, once for both devices: x
// (M or 1, N, D), log_sigma2 (M or 1, N or 1, D or 1). The gradient of log_sigma2 is per model even where it is shared.
#include "ops/gaussian_log_likelihood.h"

#include <tuple>

#include "common/backend.h"

namespace lineavae {
namespace {

// What all three ops take.
struct Inputs {
  int64_t models, samples, features;
  Tensor x, x_hat, log_sigma2;
};

Inputs check(const char* op, const Tensor& x, const Tensor& x_hat, const Tensor& log_sigma2) {
  const auto [M, N, D] = sizes_of<3>(op, "x_hat", x_hat);
  const Checked checked(op, x_hat);
  return {M,
          N,
          D,
          checked("x", x, {one_or(M, x), N, D}),
          checked("x_hat", x_hat, {M, N, D}),
          checked("log_sigma2", log_sigma2,
                  {one_or(M, log_sigma2, 0), one_or(N, log_sigma2, 1), one_or(D, log_sigma2, 2)})};
}

Noise noise_of(const Tensor& log_sigma2) {
  if (log_sigma2.size(2) == 1) return Noise::kRow;
  return log_sigma2.size(1) == 1 ? Noise::kFeature : Noise::kElement;
}

template <class T>
GaussianData<T> data_of(const Inputs& in) {
  const Tensor& s = in.log_sigma2;
  const int64_t of_sample = s.size(1) == 1 ? 0 : s.size(2), of_model = s.size(0) == 1 ? 0 : s.size(1) * s.size(2);
  return {noise_of(s), in.models, in.samples,     in.features,        in.x.size(0) == 1 && in.models > 1,
          of_model,    of_sample, input<T>(in.x), input<T>(in.x_hat), input<T>(s)};
}

// The gradients, and the memory to make them in.
template <class Device>
class Gradients {
 public:
  Gradients(const Inputs& in, ScalarType sum_dtype)
      : x_hat(empty({in.models, in.samples, in.features}, in.x_hat)),
        log_sigma2(empty({in.models, in.log_sigma2.size(1), in.log_sigma2.size(2)}, in.x_hat)),
        parts_(gaussian_parts(Device{}, in.models, in.samples, in.features)) {
    if (noise_of(in.log_sigma2) != Noise::kFeature) return;
    squares_ = empty({in.models, parts_, in.features}, in.x_hat, sum_dtype);
    grad_sums_ = empty({in.models, parts_}, in.x_hat, sum_dtype);
  }

  template <class T>
  GaussianGradients<T> of() {
    using A = accumulate_t<T>;
    return {output<T>(x_hat), output<T>(log_sigma2), parts_, squares_ ? output<A>(*squares_) : nullptr,
            grad_sums_ ? output<A>(*grad_sums_) : nullptr};
  }

  Tensor x_hat, log_sigma2;

 private:
  int64_t parts_;
  std::optional<Tensor> squares_, grad_sums_;  // for kFeature
};

// The work space of these sizes, which is none on the CPU.
class Work {
 public:
  Work(GaussianWorkSize size, const Tensor& like) : parts_(size.parts) {
    const auto bytes = static_cast<int64_t>(size.parts * sizeof(GaussianSums) + size.tickets * sizeof(uint32_t));
    if (bytes > 0) memory_ = empty({bytes}, like, ScalarType::Byte);
  }
  GaussianWork of() {
    if (!memory_) return {nullptr, nullptr};
    auto* parts = output<GaussianSums>(*memory_);
    return {parts, reinterpret_cast<uint32_t*>(parts + parts_)};
  }

 private:
  int64_t parts_;
  std::optional<Tensor> memory_;
};

// -> value, distortion
template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& x_hat, const Tensor& log_sigma2) {
  constexpr const char* kOp = "gaussian_log_likelihood";
  const Inputs in = check(kOp, x, x_hat, log_sigma2);
  Tensor value = empty({in.models, in.samples}, x_hat, value_dtype(x_hat));
  Tensor distortion = empty({in.models, in.samples}, x_hat, value_dtype(x_hat));
  Work work(gaussian_value_work(Device{}, in.models, in.samples, in.features), x_hat);
  const Backend<Device> backend(x_hat);
  dispatch_all_floating(kOp, x_hat, [&]<class T>() {
    gaussian_log_likelihood(backend.device(), GaussianLogLikelihood<T>{data_of<T>(in), output<accumulate_t<T>>(value),
                                                                       output<accumulate_t<T>>(distortion), work.of()});
  });
  return {value, distortion};
}

// -> grad_x_hat, grad_log_sigma2
template <class Device>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& x, const Tensor& x_hat, const Tensor& log_sigma2,
                                    const Tensor& distortion_) {
  constexpr const char* kOp = "gaussian_log_likelihood_backward";
  const Inputs in = check(kOp, x, x_hat, log_sigma2);
  const Checked checked(kOp, x_hat);
  const Tensor grad = checked("grad", grad_, {in.models, in.samples}, value_dtype(x_hat));
  const Tensor distortion = checked("distortion", distortion_, {in.models, in.samples}, value_dtype(x_hat));
  const Backend<Device> backend(x_hat);
  Gradients<Device> gradients(in, value_dtype(x_hat));
  dispatch_all_floating(kOp, x_hat, [&]<class T>() {
    gaussian_log_likelihood_backward(
        backend.device(),
        GaussianLogLikelihoodBackward<T>{data_of<T>(in), input<accumulate_t<T>>(grad),
                                         input<accumulate_t<T>>(distortion), gradients.template of<T>()});
  });
  return {gradients.x_hat, gradients.log_sigma2};
}

// -> mean, and the gradients of the loss, -mean: grad_x_hat, grad_log_sigma2
template <class Device>
std::tuple<Tensor, Tensor, Tensor> mean(const Tensor& x, const Tensor& x_hat, const Tensor& log_sigma2) {
  constexpr const char* kOp = "gaussian_log_likelihood_mean";
  const Inputs in = check(kOp, x, x_hat, log_sigma2);
  const Backend<Device> backend(x_hat);
  Tensor mean = empty({in.models}, x_hat);
  Tensor value = empty({in.models, in.samples}, x_hat), distortion = empty({in.models, in.samples}, x_hat);
  Gradients<Device> gradients(in, x_hat.scalar_type());
  Work work(gaussian_mean_work(Device{}, in.models, in.samples, in.features), x_hat);
  dispatch_floating(kOp, x_hat, [&]<class T>() {
    gaussian_log_likelihood_mean(
        backend.device(), GaussianLogLikelihoodMean<T>{data_of<T>(in), output<T>(mean), output<T>(value),
                                                       output<T>(distortion), gradients.template of<T>(), work.of()});
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
