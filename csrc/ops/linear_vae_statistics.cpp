// linear_vae_elbo_from_moments and linear_vae_elbo_from_factor on tensors: the products go through torch, everything
// between them through the kernels of linear_vae_statistics.h. The two ops differ only in what stands for S.
#include "ops/linear_vae_statistics.h"

#include <string>
#include <tuple>

#include "common/backend.h"

namespace lineavae {
namespace {

// What forward and backward share.
struct Inputs {
  const char* op;
  Covariance form;
  int64_t models, features, latents, rank;
  Tensor sample_mean;  // (M or 1, D)
  Tensor covariance;   // (M or 1, D, D), or a factor of it, (M or 1, D, r) or (M or 1, D)
  Tensor weight;       // (M, D, K)
  Tensor encoder;      // (M, K, D)
  Tensor mu;           // (M, D)
  Tensor log_d;        // (M, K)
  Tensor log_sigma2;   // (M)
  Tensor beta;         // (M)

  bool shared(const Tensor& statistic) const { return statistic.size(0) == 1 && models > 1; }
};

template <bool kFactor>
Inputs check(const Tensor& sample_mean, const Tensor& covariance, const Tensor& weight, const Tensor& encoder,
             const Tensor& mu, const Tensor& log_d, const Tensor& log_sigma2, const Tensor& beta) {
  constexpr const char* kOp = kFactor ? "linear_vae_elbo_from_factor" : "linear_vae_elbo_from_moments";
  constexpr const char* kName = kFactor ? "factor" : "covariance";
  const auto [M, D, K] = sizes_of<3>(kOp, "weight", weight);
  const Checked checked(kOp, weight);
  const bool diagonal = kFactor && covariance.dim() == 2;
  const int64_t rank = kFactor && covariance.dim() == 3 ? covariance.size(2) : D, own = one_or(M, covariance);
  return {kOp,
          diagonal  ? Covariance::kDiagonal
          : kFactor ? Covariance::kFactor
                    : Covariance::kDense,
          M,
          D,
          K,
          rank,
          checked("sample_mean", sample_mean, {one_or(M, sample_mean), D}),
          diagonal ? checked(kName, covariance, {own, D}) : checked(kName, covariance, {own, D, rank}),
          checked("weight", weight, {M, D, K}),
          checked("encoder", encoder, {M, K, D}),
          checked("mu", mu, {M, D}),
          checked("log_d", log_d, {M, K}),
          checked("log_sigma2", log_sigma2, {M}),
          checked("beta", beta, {M})};
}

// The product of S and these matrices, transposed.
template <class Device>
Tensor diagonal_product(const Backend<Device>& backend, const Inputs& in, const Tensor& matrices, bool features_first) {
  const int64_t M = in.models, D = in.features, K = in.latents;
  Tensor out = features_first ? empty({M, K, D}, matrices) : empty({M, D, K}, matrices);
  dispatch_floating(in.op, matrices, [&]<class T>() {
    diagonal_product(backend.device(), DiagonalProduct<T>{M, D, K, in.shared(in.covariance), features_first,
                                                          input<T>(in.covariance), input<T>(matrices), output<T>(out)});
  });
  return out;
}

// S Vᵀ, (M, D, K)
template <class Device>
Tensor covariance_encoder(const Backend<Device>& backend, const Inputs& in) {
  switch (in.form) {
    case Covariance::kDiagonal:
      return diagonal_product(backend, in, in.encoder, false);
    case Covariance::kFactor:
      return product(in.covariance, product(transposed(in.covariance), transposed(in.encoder)));
    default:
      return product(in.covariance, transposed(in.encoder));
  }
}

// Gᵀ S, (M, K, D), from G, (M, D, K)
template <class Device>
Tensor shortfall_covariance(const Backend<Device>& backend, const Inputs& in, const Tensor& shortfall) {
  switch (in.form) {
    case Covariance::kDiagonal:
      return diagonal_product(backend, in, shortfall, true);
    case Covariance::kFactor:
      return product(product(transposed(shortfall), in.covariance), transposed(in.covariance));
    default:
      return product(transposed(shortfall), in.covariance);
  }
}

// -> elbo, distortion, offset, encoded_offset, covariance_encoder, gram, aggregate
template <bool kFactor, class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& sample_mean, const Tensor& covariance, const Tensor& weight, const Tensor& encoder, const Tensor& mu,
    const Tensor& log_d, const Tensor& log_sigma2, const Tensor& beta, int64_t num_features) {
  const Inputs in = check<kFactor>(sample_mean, covariance, weight, encoder, mu, log_d, log_sigma2, beta);
  const int64_t M = in.models, D = in.features, K = in.latents;
  const Backend<Device> backend(weight);
  Tensor offset = empty({M, D}, weight);
  dispatch_floating(in.op, weight, [&]<class T>() {
    subtract_mean(backend.device(), OffsetArguments<T>{M, D, in.shared(in.sample_mean), input<T>(in.sample_mean),
                                                       input<T>(in.mu), output<T>(offset)});
  });
  Tensor encoded_offset = product_with_vector(in.encoder, offset);
  Tensor c = covariance_encoder(backend, in);
  Tensor gram = product(transposed(in.weight), in.weight);
  Tensor aggregate = product(in.encoder, c);
  Tensor parts = empty({M, num_parts(D)}, weight, ScalarType::Double);
  Tensor elbo_value = empty({M}, weight), distortion = empty({M}, weight, ScalarType::Double);
  dispatch_floating(in.op, weight, [&]<class T>() {
    distortion_parts(
        backend.device(),
        DistortionArguments<T>{M, D, K, in.form, in.rank, in.shared(in.covariance), input<T>(in.covariance),
                               input<T>(in.weight), input<T>(in.log_d), input<T>(offset), input<T>(encoded_offset),
                               input<T>(c), input<T>(gram), input<T>(aggregate), output<double>(parts)});
    elbo(backend.device(),
         ElboArguments<T>{M, D, K, static_cast<double>(num_features), input<double>(parts), input<T>(in.log_d),
                          input<T>(in.log_sigma2), input<T>(in.beta), input<T>(encoded_offset), input<T>(aggregate),
                          output<T>(elbo_value), output<double>(distortion)});
  });
  return {elbo_value, distortion, offset, encoded_offset, c, gram, aggregate};
}

// -> grad_weight, grad_encoder, grad_mu, grad_log_d, grad_log_sigma2
template <bool kFactor, class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_, const Tensor& sample_mean, const Tensor& covariance, const Tensor& weight,
    const Tensor& encoder, const Tensor& mu, const Tensor& log_d, const Tensor& log_sigma2, const Tensor& beta,
    const Tensor& distortion_, const Tensor& offset_, const Tensor& encoded_offset_, const Tensor& covariance_encoder_,
    const Tensor& gram_, const Tensor& aggregate_, int64_t num_features) {
  const Inputs in = check<kFactor>(sample_mean, covariance, weight, encoder, mu, log_d, log_sigma2, beta);
  const int64_t M = in.models, D = in.features, K = in.latents;
  const Checked checked(in.op, weight);
  const Tensor grad = checked("grad", grad_, {M});
  const Tensor distortion = checked("distortion", distortion_, {M}, ScalarType::Double);
  const Tensor offset = checked("offset", offset_, {M, D});
  const Tensor encoded_offset = checked("encoded_offset", encoded_offset_, {M, K});
  const Tensor c = checked("covariance_encoder", covariance_encoder_, {M, D, K});
  const Tensor gram = checked("gram", gram_, {M, K, K}), aggregate = checked("aggregate", aggregate_, {M, K, K});
  const Backend<Device> backend(weight);
  Tensor decoder_pull = empty({M, K, K}, weight), encoder_pull = empty({M, K, K}, weight);
  Tensor grad_log_d = empty({M, K}, weight), weight_scale = empty({M, K}, weight, ScalarType::Double);
  dispatch_floating(in.op, weight, [&]<class T>() {
    latent_gradients(
        backend.device(),
        LatentGradients<T>{M, K, input<T>(grad), input<T>(in.log_d), input<T>(in.log_sigma2), input<T>(in.beta),
                           input<T>(encoded_offset), input<T>(gram), input<T>(aggregate), output<T>(decoder_pull),
                           output<T>(encoder_pull), output<double>(weight_scale), output<T>(grad_log_d)});
  });
  Tensor grad_weight = product(in.weight, decoder_pull);
  Tensor shortfall = product(transposed(in.encoder), encoder_pull);
  Tensor grad_mu = empty({M, D}, weight), grad_log_sigma2 = empty({M}, weight);
  dispatch_floating(in.op, weight, [&]<class T>() {
    weight_gradients(
        backend.device(),
        WeightGradients<T>{M, D, K, input<T>(grad), input<T>(in.log_sigma2), input<T>(in.weight), input<T>(offset),
                           input<T>(encoded_offset), input<T>(c), input<double>(weight_scale), output<T>(grad_weight),
                           output<T>(shortfall), output<T>(grad_mu)});
  });
  Tensor grad_encoder = shortfall_covariance(backend, in, shortfall);
  const Tensor offset_pull = product_with_vector(transposed(shortfall), offset);
  const Tensor pulled = product_with_vector(transposed(in.encoder), offset_pull);
  dispatch_floating(in.op, weight, [&]<class T>() {
    remaining_gradients(
        backend.device(),
        RemainingGradients<T>{M, D, K, static_cast<double>(num_features), input<T>(grad), input<T>(in.log_sigma2),
                              input<double>(distortion), input<T>(offset), input<T>(offset_pull), input<T>(pulled),
                              output<T>(grad_encoder), output<T>(grad_mu), output<T>(grad_log_sigma2)});
  });
  return {grad_weight, grad_encoder, grad_mu, grad_log_d, grad_log_sigma2};
}

template <class Device>
void implement(Library& library) {
  library.impl("linear_vae_elbo_from_moments", TORCH_BOX((&forward<false, Device>)));
  library.impl("linear_vae_elbo_from_moments_backward", TORCH_BOX((&backward<false, Device>)));
  library.impl("linear_vae_elbo_from_factor", TORCH_BOX((&forward<true, Device>)));
  library.impl("linear_vae_elbo_from_factor_backward", TORCH_BOX((&backward<true, Device>)));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  for (const auto& [op, covariance] :
       {std::pair<std::string, std::string>{"linear_vae_elbo_from_moments", "covariance"},
        {"linear_vae_elbo_from_factor", "factor"}}) {
    const std::string inputs =
        "Tensor sample_mean, Tensor " + covariance +
        ", Tensor weight, Tensor encoder, Tensor mu, Tensor log_d, Tensor log_sigma2, Tensor beta";
    const std::string saved =
        "Tensor distortion, Tensor offset, Tensor encoded_offset, Tensor covariance_encoder, Tensor gram, "
        "Tensor aggregate";
    library.def((op + "(" + inputs + ", int num_features) -> (Tensor elbo, " + saved + ")").c_str());
    library.def((op + "_backward(Tensor grad, " + inputs + ", " + saved +
                 ", int num_features) -> (Tensor grad_weight, Tensor grad_encoder, Tensor grad_mu, Tensor grad_log_d, "
                 "Tensor grad_log_sigma2)")
                    .c_str());
  }
}

LINEAVAE_IMPLEMENT(implement)
