// Schemas and shape rules of reparameterized_kl, once for both devices.
#include "ops/reparameterized_kl.h"

#include <optional>

#include "common/backend.h"

namespace lineavae {
namespace {

// The arguments that forward and backward share, contiguous.
struct Inputs {
  Tensor mean, logvar, seed;
  std::optional<Tensor> kl_weight;
  int64_t models, rows, latents;

  template <class T>
  GaussianPosterior<T> posterior(int64_t samples) const {
    return {models,
            samples,
            rows,
            latents,
            input<T>(mean),
            input<T>(logvar),
            input_kl_weight<T>(kl_weight),
            input<int64_t>(seed),
            seed.size(0) == 1};
  }
};

Inputs check(const char* op, const Tensor& mean, const Tensor& logvar, const Tensor& seed,
             const std::optional<Tensor>& kl_weight) {
  STD_TORCH_CHECK(mean.dim() == 3, op, ": mean must have shape (M, N, K)");
  const int64_t models = mean.size(0), rows = mean.size(1), latents = mean.size(2);
  check_shape(op, "logvar", logvar, {models, rows, latents});
  check_like(op, "logvar", logvar, mean);
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long, op, ": seed must be int64");
  STD_TORCH_CHECK(seed.is_cuda() == mean.is_cuda() && seed.get_device_index() == mean.get_device_index(), op,
                  ": seed is on another device");
  STD_TORCH_CHECK(seed.dim() == 1, op, ": seed must have one dimension");
  check_shape(op, "seed", seed, {seed.size(0) == 1 ? 1 : models});
  return {torch::stable::contiguous(mean),
          torch::stable::contiguous(logvar),
          torch::stable::contiguous(seed),
          checked_kl_weight(op, kl_weight, mean, models),
          models,
          rows,
          latents};
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& mean, const Tensor& logvar, const Tensor& seed,
                                   const std::optional<Tensor>& kl_weight, int64_t num_samples) {
  constexpr const char* kOp = "reparameterized_kl";
  STD_TORCH_CHECK(num_samples >= 1, kOp, ": num_samples must be at least 1");
  const Inputs in = check(kOp, mean, logvar, seed, kl_weight);
  Tensor z = empty({in.models, num_samples, in.rows, in.latents}, mean, value_dtype(mean));
  Tensor kl = empty({in.models, in.rows}, mean, value_dtype(mean));
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
  STD_TORCH_CHECK(grad_z.dim() == 4, kOp, ": grad_z must have shape (M, S, N, K)");
  const int64_t samples = grad_z.size(1);
  check_shape(kOp, "grad_z", grad_z, {in.models, samples, in.rows, in.latents});
  check_shape(kOp, "grad_kl", grad_kl, {in.models, in.rows});
  STD_TORCH_CHECK(grad_z.scalar_type() == value_dtype(mean) && grad_kl.scalar_type() == value_dtype(mean), kOp,
                  ": grad_z and grad_kl must have the dtype of the values");
  const Tensor g = torch::stable::contiguous(grad_z), h = torch::stable::contiguous(grad_kl);
  Tensor grad_mean = empty({in.models, in.rows, in.latents}, mean);
  Tensor grad_logvar = empty({in.models, in.rows, in.latents}, mean);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using A = accumulate_t<T>;
    reparameterized_kl_backward(backend.device(),
                                ReparameterizedKLBackward<T>{in.posterior<T>(samples), input<A>(g), input<A>(h),
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
