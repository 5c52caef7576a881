// linear_vae_elbo_from_moments and linear_vae_elbo_from_factor on tensors: the products go through torch, everything
// between them through the kernels of linear_vae_statistics.h. The two ops differ only in what stands for S.
#pragma once

#include <tuple>

#include "common/backend.h"
#include "ops/linear_vae_statistics.h"

namespace lineavae {

struct Statistics {
  const char* op;
  Covariance form;
  Tensor sample_mean;  // (M or 1, D)
  Tensor covariance;   // (M or 1, D, D), (M or 1, D, r) or (M or 1, D)

  bool shared(const Tensor& statistic, int64_t models) const { return statistic.size(0) == 1 && models > 1; }
};

struct Parameters {
  Tensor weight;      // (M, D, K)
  Tensor encoder;     // (M, K, D)
  Tensor mu;          // (M, D)
  Tensor log_d;       // (M, K)
  Tensor log_sigma2;  // (M)
  Tensor beta;        // (M)
  int64_t models, features, latents;

  Parameters(const char* op, const Tensor& weight_, const Tensor& encoder_, const Tensor& mu_, const Tensor& log_d_,
             const Tensor& log_sigma2_, const Tensor& beta_)
      : weight(torch::stable::contiguous(weight_)),
        encoder(torch::stable::contiguous(encoder_)),
        mu(torch::stable::contiguous(mu_)),
        log_d(torch::stable::contiguous(log_d_)),
        log_sigma2(torch::stable::contiguous(log_sigma2_)),
        beta(torch::stable::contiguous(beta_)) {
    STD_TORCH_CHECK(weight.dim() == 3, op, ": weight must have shape (M, D, K)");
    models = weight.size(0), features = weight.size(1), latents = weight.size(2);
    check_shape(op, "encoder", encoder, {models, latents, features});
    check_shape(op, "mu", mu, {models, features});
    check_shape(op, "log_d", log_d, {models, latents});
    check_shape(op, "log_sigma2", log_sigma2, {models});
    check_shape(op, "beta", beta, {models});
    for (const Tensor* tensor : {&encoder, &mu, &log_d, &log_sigma2, &beta})
      check_like(op, "a parameter", *tensor, weight);
  }
};

inline Statistics check_statistics(const char* op, bool factor, const Tensor& sample_mean, const Tensor& covariance,
                                   const Parameters& p) {
  const int64_t rank = covariance.dim() > 2 ? covariance.size(2) : 0;
  const int64_t own_means = sample_mean.size(0) == 1 ? 1 : p.models;
  const int64_t own_covariances = covariance.size(0) == 1 ? 1 : p.models;
  check_shape(op, "sample_mean", sample_mean, {own_means, p.features});
  if (!factor) {
    check_shape(op, "covariance", covariance, {own_covariances, p.features, p.features});
  } else if (covariance.dim() == 2) {
    check_shape(op, "factor", covariance, {own_covariances, p.features});
  } else {
    check_shape(op, "factor", covariance, {own_covariances, p.features, rank});
  }
  check_like(op, "sample_mean", sample_mean, p.weight);
  check_like(op, "the covariance", covariance, p.weight);
  const Covariance form = !factor                 ? Covariance::kDense
                          : covariance.dim() == 2 ? Covariance::kDiagonal
                                                  : Covariance::kFactor;
  return {op, form, torch::stable::contiguous(sample_mean), torch::stable::contiguous(covariance)};
}

template <class Device>
Tensor diagonal_product(const Backend<Device>& backend, const Statistics& s, const Tensor& in, bool features_first) {
  const int64_t models = in.size(0), rows = in.size(1), columns = in.size(2);
  Tensor out = empty({models, columns, rows}, in);
  dispatch_floating(s.op, in, [&]<class T>() {
    diagonal_product(backend.device(),
                     DiagonalProduct<T>{models, features_first ? rows : columns, features_first ? columns : rows,
                                        s.shared(s.covariance, models), features_first, input<T>(s.covariance),
                                        input<T>(in), output<T>(out)});
  });
  return out;
}

// S Vᵀ, (M, D, K), from V, (M, K, D)
template <class Device>
Tensor covariance_encoder(const Backend<Device>& backend, const Statistics& s, const Tensor& encoder) {
  switch (s.form) {
    case Covariance::kDiagonal:
      return diagonal_product(backend, s, encoder, false);
    case Covariance::kFactor:
      return product(s.covariance, product(transposed(s.covariance), transposed(encoder)));
    default:
      return product(s.covariance, transposed(encoder));
  }
}

// Gᵀ S, (M, K, D), from G, (M, D, K)
template <class Device>
Tensor shortfall_covariance(const Backend<Device>& backend, const Statistics& s, const Tensor& shortfall) {
  switch (s.form) {
    case Covariance::kDiagonal:
      return diagonal_product(backend, s, shortfall, true);
    case Covariance::kFactor:
      return product(product(transposed(shortfall), s.covariance), transposed(s.covariance));
    default:
      return product(transposed(shortfall), s.covariance);
  }
}

using StatisticsOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// -> elbo, distortion, offset, encoded_offset, covariance_encoder, gram, aggregate
template <class Device>
StatisticsOutputs statistics_forward(const Statistics& s, const Parameters& p, int64_t num_features) {
  const Backend<Device> backend(p.weight);
  const int64_t M = p.models, D = p.features, K = p.latents;
  Tensor offset = empty({M, D}, p.weight);
  dispatch_floating(s.op, p.weight, [&]<class T>() {
    subtract_mean(backend.device(), OffsetArguments<T>{M, D, s.shared(s.sample_mean, M), input<T>(s.sample_mean),
                                                       input<T>(p.mu), output<T>(offset)});
  });
  Tensor encoded_offset = product_with_vector(p.encoder, offset);
  Tensor c = covariance_encoder(backend, s, p.encoder);
  Tensor gram = product(transposed(p.weight), p.weight);
  Tensor aggregate = product(p.encoder, c);
  Tensor parts = empty({M, num_parts(D)}, p.weight, ScalarType::Double);
  Tensor elbo_value = empty({M}, p.weight), distortion = empty({M}, p.weight, ScalarType::Double);
  dispatch_floating(s.op, p.weight, [&]<class T>() {
    distortion_parts(backend.device(),
                     DistortionArguments<T>{M, D, K, s.form, s.form == Covariance::kFactor ? s.covariance.size(2) : 0,
                                            s.shared(s.covariance, M), input<T>(s.covariance), input<T>(p.weight),
                                            input<T>(p.log_d), input<T>(offset), input<T>(encoded_offset), input<T>(c),
                                            input<T>(gram), input<T>(aggregate), output<double>(parts)});
    elbo(backend.device(),
         ElboArguments<T>{M, D, K, static_cast<double>(num_features), input<double>(parts), input<T>(p.log_d),
                          input<T>(p.log_sigma2), input<T>(p.beta), input<T>(encoded_offset), input<T>(aggregate),
                          output<T>(elbo_value), output<double>(distortion)});
  });
  return {elbo_value, distortion, offset, encoded_offset, c, gram, aggregate};
}

using ParameterGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// -> grad_weight, grad_encoder, grad_mu, grad_log_d, grad_log_sigma2
template <class Device>
ParameterGradients statistics_backward(const Tensor& grad_, const Statistics& s, const Parameters& p,
                                       const Tensor& distortion, const Tensor& offset, const Tensor& encoded_offset,
                                       const Tensor& c, const Tensor& gram, const Tensor& aggregate,
                                       int64_t num_features) {
  const int64_t M = p.models, D = p.features, K = p.latents;
  check_shape(s.op, "grad", grad_, {M});
  check_shape(s.op, "distortion", distortion, {M});
  check_shape(s.op, "offset", offset, {M, D});
  check_shape(s.op, "encoded_offset", encoded_offset, {M, K});
  check_shape(s.op, "covariance_encoder", c, {M, D, K});
  check_shape(s.op, "gram", gram, {M, K, K});
  check_shape(s.op, "aggregate", aggregate, {M, K, K});
  for (const Tensor* tensor : {&grad_, &distortion, &offset, &encoded_offset, &c, &gram, &aggregate}) {
    if (tensor != &distortion) check_like(s.op, "a saved tensor", *tensor, p.weight);
    STD_TORCH_CHECK(tensor == &grad_ || tensor->is_contiguous(), s.op, ": saved tensors must be contiguous");
  }
  const Backend<Device> backend(p.weight);
  const Tensor grad = torch::stable::contiguous(grad_);
  Tensor decoder_pull = empty({M, K, K}, p.weight), encoder_pull = empty({M, K, K}, p.weight);
  Tensor grad_log_d = empty({M, K}, p.weight), weight_scale = empty({M, K}, p.weight, ScalarType::Double);
  dispatch_floating(s.op, p.weight, [&]<class T>() {
    latent_gradients(
        backend.device(),
        LatentGradients<T>{M, K, input<T>(grad), input<T>(p.log_d), input<T>(p.log_sigma2), input<T>(p.beta),
                           input<T>(encoded_offset), input<T>(gram), input<T>(aggregate), output<T>(decoder_pull),
                           output<T>(encoder_pull), output<double>(weight_scale), output<T>(grad_log_d)});
  });
  Tensor grad_weight = product(p.weight, decoder_pull);
  Tensor shortfall = product(transposed(p.encoder), encoder_pull);
  Tensor grad_mu = empty({M, D}, p.weight), grad_log_sigma2 = empty({M}, p.weight);
  dispatch_floating(s.op, p.weight, [&]<class T>() {
    weight_gradients(
        backend.device(),
        WeightGradients<T>{M, D, K, input<T>(grad), input<T>(p.log_sigma2), input<T>(p.weight), input<T>(offset),
                           input<T>(encoded_offset), input<T>(c), input<double>(weight_scale), output<T>(grad_weight),
                           output<T>(shortfall), output<T>(grad_mu)});
  });
  Tensor grad_encoder = shortfall_covariance(backend, s, shortfall);
  const Tensor offset_pull = product_with_vector(transposed(shortfall), offset);
  const Tensor pulled = product_with_vector(transposed(p.encoder), offset_pull);
  dispatch_floating(s.op, p.weight, [&]<class T>() {
    remaining_gradients(
        backend.device(),
        RemainingGradients<T>{M, D, K, static_cast<double>(num_features), input<T>(grad), input<T>(p.log_sigma2),
                              input<double>(distortion), input<T>(offset), input<T>(offset_pull), input<T>(pulled),
                              output<T>(grad_encoder), output<T>(grad_mu), output<T>(grad_log_sigma2)});
  });
  return {grad_weight, grad_encoder, grad_mu, grad_log_d, grad_log_sigma2};
}

}  // namespace lineavae
