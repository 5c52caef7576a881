// Log-likelihood of data under diagonal Gaussians N(x̂, σ²), per sample and its mean over the samples. With s = log σ²,
// r = x - x̂ and Q_n = Σ_i r_ni² / σ²:
//
//   gaussian_log_likelihood        L_n = -½ (Q_n + Σ_i (s_i + log 2π))
//   gaussian_log_likelihood_mean   L = (1/N) Σ_n L_n, with the gradients of the loss -L: g_n = -1/N
//   the backward of both           ∂x̂_ni = g_n r_ni / σ²,   ∂x = -∂x̂,   ∂s_ni = ½ g_n (r_ni² / σ² - 1)
//
// and ∂s summed over what shares one variance. Sums of squares are in float, or double for double, over at most a few
// thousand elements, and in double from there on. Values, and the gradient that comes in, are double for double inputs
// and float for all others; the gradients that go out have the dtype of the inputs.
//
// r/σ is squared, not r² divided by σ², and g r/σ² is (g r/σ) / σ: with 1/σ = e^(-s/2) that covers all s of any use.
// What overflows even so is not finite, and a row or column in which something is not, or in which g is of no usual
// size, is done again in the next wider type (common/wide.h).
//
// Launches: 1 forward and 1 backward, 2 with a σ² for each feature. The mean form: 1, with a σ² for each feature 3, and
// no backward: torch scales two gradients. Tickets, which the mean form and a few long rows have, are set to 0 before.
// The expected form: torch's over latents and weight, beside 1 and 1 product forward, 2 and 2 products backward.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/device.h"
#include "common/expm1.h"
#include "common/half.h"
#include "common/wide.h"

namespace lineavae {

// What has a variance of its own: each row, or one for all rows of a model; each feature; each element.
enum class Noise { kRow, kFeature, kElement };

// Everything contiguous.
template <class T>
struct GaussianData {
  Noise noise;
  int64_t models, samples, features;
  bool shared_x;                            // one x for all models
  int64_t noise_of_model, noise_of_sample;  // strides of log_sigma2, 0 where it is shared
  const T* x;                               // (models or 1, N, D)
  const T* x_hat;                           // (models, N, D)
  const T* log_sigma2;                      // (models or 1, N or 1, D or 1)

  LINEAVAE_HOST_DEVICE accumulate_t<T> loss_grad() const {
    return accumulate_t<T>(-1) / static_cast<accumulate_t<T>>(samples);
  }
  LINEAVAE_HOST_DEVICE int64_t rows() const { return models * samples; }
  LINEAVAE_HOST_DEVICE const T* x_row(int64_t row) const { return x_row(row / samples, row % samples); }
  LINEAVAE_HOST_DEVICE const T* x_row(int64_t model, int64_t sample) const {
    return x + ((shared_x ? 0 : model * samples) + sample) * features;
  }
  LINEAVAE_HOST_DEVICE const T* x_hat_row(int64_t row) const { return x_hat + row * features; }
  LINEAVAE_HOST_DEVICE const T* log_sigma2_row(int64_t row) const {
    return log_sigma2_row(row / samples, row % samples);
  }
  LINEAVAE_HOST_DEVICE const T* log_sigma2_row(int64_t model, int64_t sample) const {
    return log_sigma2 + model * noise_of_model + sample * noise_of_sample;
  }
};

// Σ r²/σ² and, where it is a sum, Σ log σ² of a part of a row, or of several rows.
struct GaussianSums {
  double squares, logs;
};

// Where CUDA adds up what several blocks have summed; empty on the CPU.
struct GaussianWork {
  GaussianSums* parts;
  uint32_t* tickets;  // how many blocks have come, for each row and then for each model
};
struct GaussianWorkSize {
  int64_t parts, tickets;
};

// How CUDA lays the rows of one or more groups, which no block straddles, over a grid: a row has `lanes` threads in
// each of `slices` blocks. As few threads as fill the multiprocessors, so that each has much to load at once, but so
// many that none adds up too much in float.
struct GaussianRowGrid {
  int64_t groups, rows;  // of a group
  int lanes_log2 = 5;
  int64_t blocks, slices = 1;  // of a group; of a row

  GaussianRowGrid(int64_t groups_, int64_t rows_, int64_t features) : groups(groups_), rows(rows_) {
    constexpr int kThreadsLog2 = 8;
    constexpr int64_t kBlocks = 264;  // two for each multiprocessor
    const auto count_blocks = [&] { return ((rows << lanes_log2) + (1 << kThreadsLog2) - 1) >> kThreadsLog2; };
    const auto is_short = [&](int64_t elements) { return features <= elements << lanes_log2; };
    while (lanes_log2 < kThreadsLog2 && !is_short(groups * count_blocks() < kBlocks ? 4 : 128)) ++lanes_log2;
    blocks = count_blocks();
    if (lanes_log2 == kThreadsLog2 && rows > 0) {
      constexpr int64_t kMinFeatures = 4096;
      const int64_t enough = (kBlocks + groups * rows - 1) / (groups * rows);
      slices = std::min(enough, (features + kMinFeatures - 1) / kMinFeatures);
    }
  }
  GaussianWorkSize work() const {
    return slices > 1 ? GaussianWorkSize{groups * rows * slices, groups * rows} : GaussianWorkSize{0, 0};
  }
};

inline GaussianRowGrid gaussian_value_grid(int64_t models, int64_t samples, int64_t features) {
  return {1, models * samples, features};
}
// With a block for a model of no samples too.
inline GaussianRowGrid gaussian_mean_grid(int64_t models, int64_t samples, int64_t features) {
  GaussianRowGrid grid(models, samples, features);
  grid.blocks = std::max<int64_t>(grid.blocks, 1);
  return grid;
}

inline GaussianWorkSize gaussian_value_work(Cpu, int64_t, int64_t, int64_t) { return {0, 0}; }
inline GaussianWorkSize gaussian_value_work(Cuda, int64_t models, int64_t samples, int64_t features) {
  return gaussian_value_grid(models, samples, features).work();
}
inline GaussianWorkSize gaussian_mean_work(Cpu, int64_t, int64_t, int64_t) { return {0, 0}; }
inline GaussianWorkSize gaussian_mean_work(Cuda, int64_t models, int64_t samples, int64_t features) {
  const GaussianRowGrid grid = gaussian_mean_grid(models, samples, features);
  const GaussianWorkSize of_rows = grid.work();
  return {of_rows.parts + models * grid.blocks, of_rows.tickets + models};
}

template <class T>
struct GaussianLogLikelihood {
  GaussianData<T> data;
  accumulate_t<T>* value;       // (models, N): L
  accumulate_t<T>* distortion;  // (models, N): Q
  GaussianWork work;            // gaussian_value_work(device, ...)
};

// In how many parts the samples of a model are summed for kFeature. On the CPU the parts are short, for the sake of
// threads; on a GPU there are blocks enough to fill it, but not so many that the sums are much to write.
constexpr int64_t kRowsOfPart = 32;
inline int64_t gaussian_parts(Cpu, int64_t, int64_t samples, int64_t) {
  return (samples + kRowsOfPart - 1) / kRowsOfPart;
}
inline int64_t gaussian_parts(Cuda, int64_t models, int64_t samples, int64_t features) {
  constexpr int64_t kBlocks = 512, kMinRows = 8, kColumns = 1024;
  const int64_t tiles = models * ((features + kColumns - 1) / kColumns);
  const int64_t rows = std::max(kMinRows, (samples * tiles + kBlocks - 1) / kBlocks);
  return (samples + rows - 1) / rows;
}

template <class T>
struct GaussianGradients {
  T* x_hat;                    // (models, N, D)
  T* log_sigma2;               // (models, N or 1, D or 1)
  int64_t parts;               // gaussian_parts(device, ...)
  accumulate_t<T>* squares;    // (models, parts, D) for kFeature: Σ g r² of each part
  accumulate_t<T>* grad_sums;  // (models, parts) for kFeature: Σ g
};

template <class T>
struct GaussianLogLikelihoodBackward {
  GaussianData<T> data;
  const accumulate_t<T>* grad;        // (models, N): g
  const accumulate_t<T>* distortion;  // (models, N): Q
  GaussianGradients<T> gradients;
};

template <class T>
struct GaussianLogLikelihoodMean {
  GaussianData<T> data;
  T* mean;        // (models)
  T* value;       // (models, N): L, not for kFeature
  T* distortion;  // (models, N): Q, not for kFeature
  GaussianGradients<T> gradients;
  GaussianWork work;  // gaussian_mean_work(device, ...), not for kFeature
};

LINEAVAE_KERNEL(gaussian_log_likelihood, GaussianLogLikelihood)
LINEAVAE_KERNEL(gaussian_log_likelihood_backward, GaussianLogLikelihoodBackward)
LINEAVAE_KERNEL(gaussian_log_likelihood_mean, GaussianLogLikelihoodMean)

// ½ g (q - 1), the gradient of one log variance, from q = r² / σ².
template <class A>
LINEAVAE_HOST_DEVICE A gaussian_grad_log_sigma2(A grad, A q) {
  return A(0.5) * grad * (q - A(1));
}

// 1/σ
template <class A>
LINEAVAE_HOST_DEVICE A inverse_scale(A log_sigma2) {
  return exponential(A(-0.5) * log_sigma2);
}

// Whether (g r/σ) / σ neither overflows, where Σ r²/σ² does not, nor loses digits that count on the way.
template <class A>
LINEAVAE_HOST_DEVICE bool is_usual_grad(A grad) {
  constexpr A kSmall = A(sizeof(A) == sizeof(float) ? 0x1p-24 : 0x1p-400), kLarge = 1 / kSmall;
  const A magnitude = grad < 0 ? -grad : grad;
  return grad == 0 || (magnitude >= kSmall && magnitude <= kLarge);
}

// One element in the next wider type.
template <class A>
class WideElement {
 public:
  using W = wider_t<A>;
  LINEAVAE_HOST_DEVICE WideElement(A x, A x_hat, A log_sigma2)
      : residual_(W(x) + W(-x_hat)), inverse_scale_(wide_exponential(A(-0.5) * log_sigma2)) {}

  LINEAVAE_HOST_DEVICE W square() const {
    const W scaled = residual_ * inverse_scale_;
    return scaled * scaled;
  }
  LINEAVAE_HOST_DEVICE A grad_x_hat(A grad) const {
    return static_cast<A>(W(grad) * residual_ * inverse_scale_ * inverse_scale_);
  }
  LINEAVAE_HOST_DEVICE W grad_log_sigma2(A grad) const { return W(0.5) * W(grad) * (square() + W(-1)); }

 private:
  W residual_, inverse_scale_;
};

// Q of a row
template <class T>
LINEAVAE_HOST_DEVICE wider_t<accumulate_t<T>> wide_squares(const GaussianData<T>& data, Noise noise, int64_t row) {
  const T *x = data.x_row(row), *x_hat = data.x_hat_row(row), *log_sigma2 = data.log_sigma2_row(row);
  wider_t<accumulate_t<T>> sum = 0;
  LINEAVAE_ROLLED
  for (int64_t i = 0; i < data.features; ++i) {
    const T s = log_sigma2[noise == Noise::kRow ? 0 : i];
    sum = sum + WideElement<accumulate_t<T>>(load(x[i]), load(x_hat[i]), load(s)).square();
  }
  return sum;
}

// L of a row, from its Q
template <class T>
LINEAVAE_HOST_DEVICE wider_t<accumulate_t<T>> wide_value(const GaussianData<T>& data, Noise noise, int64_t row,
                                                         wider_t<accumulate_t<T>> squares) {
  using W = wider_t<accumulate_t<T>>;
  const T* log_sigma2 = data.log_sigma2_row(row);
  double normaliser = static_cast<double>(data.features) * kLog2Pi;
  LINEAVAE_ROLLED
  for (int64_t i = 0; i < data.features; ++i) normaliser += load(log_sigma2[noise == Noise::kRow ? 0 : i]);
  return W(-0.5) * (squares + W(normaliser));
}

// The gradient of σ² of one feature of a model. No `grad`: of the loss.
template <class T>
LINEAVAE_HOST_DEVICE wider_t<accumulate_t<T>> wide_feature(const GaussianData<T>& data, const accumulate_t<T>* grad,
                                                           int64_t model, int64_t i) {
  using A = accumulate_t<T>;
  const int64_t first = model * data.samples;
  const T *x = data.x + (data.shared_x ? 0 : first) * data.features + i,
          *x_hat = data.x_hat + first * data.features + i;
  const A log_sigma2 = load(data.log_sigma2[model * data.noise_of_model + i]);
  wider_t<A> sum = 0;
  LINEAVAE_ROLLED
  for (int64_t n = 0; n < data.samples; ++n) {
    const WideElement<A> element(load(x[n * data.features]), load(x_hat[n * data.features]), log_sigma2);
    sum = sum + element.grad_log_sigma2(grad ? grad[first + n] : data.loss_grad());
  }
  return sum;
}

// ½ g (Q - D) of one row for kRow, in the accumulation type's wider type or in double. No `grad`: of the loss.
template <class S, class T>
LINEAVAE_HOST_DEVICE S row_noise(const GaussianData<T>& data, const accumulate_t<T>* grad,
                                 const accumulate_t<T>* distortion, int64_t row) {
  const double weight = grad ? grad[row] : -1 / static_cast<double>(data.samples);
  const S squares = is_finite(distortion[row]) ? S(distortion[row]) : S(wide_squares(data, Noise::kRow, row));
  return S(0.5) * S(weight) * (squares + S(-static_cast<double>(data.features)));
}

// L of one row, as saved or, where that is not finite, once more.
template <class S, class T>
LINEAVAE_HOST_DEVICE S saved_value(const GaussianData<T>& data, Noise noise, const accumulate_t<T>* value,
                                   int64_t row) {
  return is_finite(value[row]) ? S(value[row]) : S(wide_value(data, noise, row, wide_squares(data, noise, row)));
}

}  // namespace lineavae
