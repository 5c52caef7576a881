// Schemas and shape rules of reparameterized_kl, once for both devices: mean and logvar (M N, K), the rows of all
// models, seed (M), kl_weight (M or 1, K), z (M S, N, K). So one model's z is (S, N, K), and no view is needed around
// the op.
#include "ops/reparameterized_kl.h"

#include <optional>
#include <tuple>

#include "common/backend.h"

namespace lineavae {
namespace {

// The arguments that forward and backward share.
struct Inputs {
  int64_t models, rows, latents;  // rows of a model
  Tensor mean, logvar, seed;
  std::optional<Tensor> kl_weight;

  template <class T>
  GaussianPosterior<T> posterior(int64_t num_draws) const {
    return {models,
            num_draws,
            rows,
            latents,
            input<T>(mean),
            input<T>(logvar),
            input_kl_weight<T>(kl_weight),
            input<int64_t>(seed)};
  }
};

Inputs check(const char* op, const Tensor& mean, const Tensor& logvar, const Tensor& seed,
             const std::optional<Tensor>& kl_weight) {
  const auto [rows, K] = sizes_of<2>(op, "mean", mean);
  const auto [M] = sizes_of<1>(op, "seed", seed);
  STD_TORCH_CHECK(M == 0 ? rows == 0 : rows % M == 0, op, ": mean must have as many rows for each of ", M,
                  " seeds, got ", rows);
  const Checked checked(op, mean);
  return {M,
          M == 0 ? 0 : rows / M,
          K,
          checked("mean", mean, {rows, K}),
          checked("logvar", logvar, {rows, K}),
          checked("seed", seed, {M}, ScalarType::Long),
          checked.kl_weight(kl_weight, M, K)};
}

// -> z, kl
template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& mean, const Tensor& logvar, const Tensor& seed,
                                   const std::optional<Tensor>& kl_weight, int64_t num_draws) {
  constexpr const char* kOp = "reparameterized_kl";
  STD_TORCH_CHECK(num_draws >= 1, kOp, ": num_draws must be at least 1, got ", num_draws);
  const Inputs in = check(kOp, mean, logvar, seed, kl_weight);
  Tensor z = empty({in.models * num_draws, in.rows, in.latents}, mean, value_dtype(mean));
  Tensor kl = empty({in.models * in.rows}, mean, value_dtype(mean));
  const Backend<Device> backend(mean);
  Tensor sums = piece_sums(kl, most_pieces(backend.device(), in.latents));
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using A = accumulate_t<T>;
    reparameterized_kl(backend.device(),
                       ReparameterizedKL<T>{in.posterior<T>(num_draws), output<A>(z), output<A>(kl), output<A>(sums)});
  });
  return {z, kl};
}

// -> grad_mean, grad_logvar
template <class Device>
std::tuple<Tensor, Tensor> backward(const Tensor& grad_z_, const Tensor& grad_kl_, const Tensor& mean,
                                    const Tensor& logvar, const Tensor& seed, const std::optional<Tensor>& kl_weight) {
  constexpr const char* kOp = "reparameterized_kl_backward";
  const Inputs in = check(kOp, mean, logvar, seed, kl_weight);
  const int64_t num_draws = in.models == 0 ? 0 : sizes_of<3>(kOp, "grad_z", grad_z_)[0] / in.models;
  const Checked checked(kOp, mean);
  const Tensor grad_z = checked("grad_z", grad_z_, {in.models * num_draws, in.rows, in.latents}, value_dtype(mean));
  const Tensor grad_kl = checked("grad_kl", grad_kl_, {in.models * in.rows}, value_dtype(mean));
  Tensor grad_mean = empty({in.models * in.rows, in.latents}, mean);
  Tensor grad_logvar = empty({in.models * in.rows, in.latents}, mean);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using A = accumulate_t<T>;
    reparameterized_kl_backward(
        backend.device(), ReparameterizedKLBackward<T>{in.posterior<T>(num_draws), input<A>(grad_z), input<A>(grad_kl),
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
      "reparameterized_kl(Tensor mean, Tensor logvar, Tensor seed, Tensor? kl_weight, int num_draws) -> "
      "(Tensor, Tensor)");
  library.def(
      "reparameterized_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mean, Tensor logvar, Tensor seed, "
      "Tensor? kl_weight) -> (Tensor, Tensor)");
}

LINEAVAE_IMPLEMENT(implement)
