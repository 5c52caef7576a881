// Schemas and shape rules of reparameterized_kl, once for both devices.
#include "ops/reparameterized_kl.h"

#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "common/backend.h"

namespace lineavae {
namespace {

// The arguments that forward and backward share, contiguous. A seed () makes one model of them, seeds (M) make models
// of the entries along the first dimension.
struct Inputs {
  Tensor mean, logvar, seed;
  std::optional<Tensor> kl_weight;
  int64_t models;
  std::vector<int64_t> shape;  // of mean

  // (*models, num_samples, ..., K)
  std::vector<int64_t> shape_of_samples(int64_t num_samples) const {
    std::vector<int64_t> samples = shape;
    samples.insert(samples.begin() + seed.dim(), num_samples);
    return samples;
  }
  // (*models, ...)
  std::vector<int64_t> shape_of_kl() const { return {shape.begin(), shape.end() - 1}; }

  template <class T>
  GaussianPosterior<T> posterior(int64_t num_samples) const {
    const int64_t rows = std::accumulate(shape.begin() + seed.dim(), shape.end() - 1, int64_t{1}, std::multiplies<>());
    return {models,
            num_samples,
            rows,
            shape.back(),
            input<T>(mean),
            input<T>(logvar),
            input_kl_weight<T>(kl_weight),
            input<int64_t>(seed)};
  }
};

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape(tensor.dim());
  for (int64_t i = 0; i < tensor.dim(); ++i) shape[i] = tensor.size(i);
  return shape;
}

Inputs check(const char* op, const Tensor& mean, const Tensor& logvar, const Tensor& seed,
             const std::optional<Tensor>& kl_weight) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long, op, ": seed must be int64");
  STD_TORCH_CHECK(seed.is_cuda() == mean.is_cuda() && seed.get_device_index() == mean.get_device_index(), op,
                  ": seed is on another device");
  STD_TORCH_CHECK(seed.dim() <= 1 && mean.dim() > seed.dim(), op, ": mean must have shape (*models, ..., K)");
  STD_TORCH_CHECK(seed.dim() == 0 || seed.size(0) == mean.size(0), op, ": seed must have shape () or (M,)");
  STD_TORCH_CHECK(shape_of(logvar) == shape_of(mean), op, ": logvar must have the shape of mean");
  check_like(op, "logvar", logvar, mean);
  const int64_t models = seed.numel();
  return {torch::stable::contiguous(mean),
          torch::stable::contiguous(logvar),
          torch::stable::contiguous(seed),
          checked_kl_weight(op, kl_weight, mean, models),
          models,
          shape_of(mean)};
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& mean, const Tensor& logvar, const Tensor& seed,
                                   const std::optional<Tensor>& kl_weight, int64_t num_samples) {
  constexpr const char* kOp = "reparameterized_kl";
  STD_TORCH_CHECK(num_samples >= 1, kOp, ": num_samples must be at least 1");
  const Inputs in = check(kOp, mean, logvar, seed, kl_weight);
  Tensor z = torch::stable::new_empty(mean, in.shape_of_samples(num_samples), value_dtype(mean));
  Tensor kl = torch::stable::new_empty(mean, in.shape_of_kl(), value_dtype(mean));
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using A = accumulate_t<T>;
    reparameterized_kl(backend.device(),
                       ReparameterizedKL<T>{in.posterior<T>(num_samples), output<A>(z), output<A>(kl)});
  });
  return {z, kl};
}

template <class Device>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_z, const Tensor& grad_kl, const Tensor& mean,
                                    const Tensor& logvar, const Tensor& seed, const std::optional<Tensor>& kl_weight) {
  constexpr const char* kOp = "reparameterized_kl_backward";
  const Inputs in = check(kOp, mean, logvar, seed, kl_weight);
  STD_TORCH_CHECK(grad_z.dim() == mean.dim() + 1, kOp, ": grad_z must have shape (*models, S, ..., K)");
  const int64_t num_samples = grad_z.size(seed.dim());
  STD_TORCH_CHECK(shape_of(grad_z) == in.shape_of_samples(num_samples), kOp,
                  ": grad_z must have shape (*models, S, ..., K)");
  STD_TORCH_CHECK(shape_of(grad_kl) == in.shape_of_kl(), kOp, ": grad_kl must have shape (*models, ...)");
  STD_TORCH_CHECK(grad_z.scalar_type() == value_dtype(mean) && grad_kl.scalar_type() == value_dtype(mean), kOp,
                  ": grad_z and grad_kl must have the dtype of the values");
  const Tensor g = torch::stable::contiguous(grad_z), h = torch::stable::contiguous(grad_kl);
  Tensor grad_mean = torch::stable::new_empty(mean, in.shape), grad_logvar = torch::stable::new_empty(mean, in.shape);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using A = accumulate_t<T>;
    reparameterized_kl_backward(backend.device(),
                                ReparameterizedKLBackward<T>{in.posterior<T>(num_samples), input<A>(g), input<A>(h),
                                                             output<T>(grad_mean), output<T>(grad_logvar)});
  });
  return {grad_mean, grad_logvar};
}

template <class Device>
void implement(Library& library) {
  library.impl("reparameterized_kl", TORCH_BOX((&forward<Device>)));
  library.impl("reparameterized_kl_backward", TORCH_BOX((&backward<Device>)));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def(
      "reparameterized_kl(Tensor mean, Tensor logvar, Tensor seed, Tensor? kl_weight, int num_samples) -> "
      "(Tensor, Tensor)");
  library.def(
      "reparameterized_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mean, Tensor logvar, Tensor seed, "
      "Tensor? kl_weight) -> (Tensor, Tensor)");
}

LINEAVAE_IMPLEMENT(implement)
