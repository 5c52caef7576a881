// One pass over the rows in memory order, rows split over threads. A row is summed in the vector lanes of the
// accumulation type, chunk by chunk, chunks in double. What features share is summed over a fixed number of rows, these
// parts in double. So the result does not depend on the number of threads.
#include "ops/gaussian_log_likelihood.h"

#include <cmath>
#include <limits>
#include <vector>

#include "common/cpu.h"

namespace lineavae {
namespace {

constexpr int64_t kChunk = 1024;  // elements of a row
constexpr int64_t kColumnsOfTask = 256;

// 1/σ of a row, in the form in which its loop wants it; those of features once per model.
template <Noise R, class T>
class InverseScale {
 public:
  using A = accumulate_t<T>;
  explicit InverseScale(const GaussianData<T>& data)
      : data_(data), of_features_(R == Noise::kFeature ? data.features : 0) {}

  LINEAVAE_INLINE void to_row(int64_t row) {
    log_sigma2_ = data_.log_sigma2_row(row);
    if constexpr (R == Noise::kRow) {
      of_row_ = std::exp(-0.5 * load(log_sigma2_[0]));
      log_determinant_ = static_cast<double>(load(log_sigma2_[0])) * static_cast<double>(data_.features);
    } else if constexpr (R == Noise::kFeature) {
      const int64_t model = row / data_.samples;
      if (model == model_) return;
      model_ = model;
      A* inverse = of_features_.data();
#pragma omp simd
      for (int64_t i = 0; i < data_.features; ++i) inverse[i] = inverse_scale(load(log_sigma2_[i]));
      log_determinant_ = 0;
      for (int64_t i = 0; i < data_.features; ++i) log_determinant_ += load(log_sigma2_[i]);
    }
  }

  const T* log_sigma2() const { return log_sigma2_; }
  const A* of_features() const { return of_features_.data(); }
  A of_row() const { return static_cast<A>(of_row_); }
  // g / σ² of a row, by which its residuals are multiplied
  A slope(A grad) const { return static_cast<A>(grad * of_row_ * of_row_); }
  double log_determinant() const { return log_determinant_; }

 private:
  const GaussianData<T>& data_;
  std::vector<A> of_features_;
  int64_t model_ = -1;
  const T* log_sigma2_ = nullptr;
  double of_row_ = 0;
  double log_determinant_ = 0;
};

template <Noise R, class T>
LINEAVAE_INLINE accumulate_t<T> inverse_scale_at(int64_t i, const T* log_sigma2, const accumulate_t<T>* of_features,
                                                 accumulate_t<T> of_row) {
  if constexpr (R == Noise::kRow) return of_row;
  if constexpr (R == Noise::kFeature) return of_features[i];
  return inverse_scale(load(log_sigma2[i]));
}

// Whether `slope`, or for kElement the gradient that comes in, makes the gradients of a row as they should be.
template <Noise R, class A>
bool is_usual(A grad, A slope) {
  if (R != Noise::kRow) return is_usual_grad(grad);
  return grad == 0 || std::isnormal(slope);
}

// The gradients of a row, of x̂, and of σ² for kElement, in the wider type.
template <Noise R, class T>
void wide_gradients(const GaussianData<T>& data, accumulate_t<T> grad, const GaussianGradients<T>& gradients,
                    int64_t row) {
  using A = accumulate_t<T>;
  const T *x = data.x_row(row), *x_hat = data.x_hat_row(row), *log_sigma2 = data.log_sigma2_row(row);
  for (int64_t i = 0; i < data.features; ++i) {
    const WideElement<A> element(load(x[i]), load(x_hat[i]), load(log_sigma2[R == Noise::kRow ? 0 : i]));
    const int64_t index = row * data.features + i;
    store(element.grad_x_hat(grad), gradients.x_hat[index]);
    if (R == Noise::kElement) store(static_cast<A>(element.grad_log_sigma2(grad)), gradients.log_sigma2[index]);
  }
}

// Values, and where kGradients the gradients of x̂, and of σ² for kElement, of the loss.
template <Noise R, bool kGradients, class T>
LINEAVAE_INLINE void values(const GaussianData<T>& data, accumulate_t<T>* value, accumulate_t<T>* distortion,
                            const GaussianGradients<T>& gradients, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const A grad = data.loss_grad();
  InverseScale<R, T> inverse_scale(data);
  for (int64_t row = begin; row < end; ++row) {
    inverse_scale.to_row(row);
    const T *x = data.x_row(row), *x_hat = data.x_hat_row(row), *log_sigma2 = inverse_scale.log_sigma2();
    const A *of_features = inverse_scale.of_features(), of_row = inverse_scale.of_row();
    const A slope = inverse_scale.slope(grad);
    T* grad_x_hat = gradients.x_hat + row * data.features;
    T* grad_log_sigma2 = gradients.log_sigma2 + row * data.features;
    double squares = 0, log_determinant = inverse_scale.log_determinant();
    for (int64_t start = 0; start < data.features; start += kChunk) {
      const int64_t stop = std::min(start + kChunk, data.features);
      A sum = 0, logs = 0;
#pragma omp simd reduction(+ : sum, logs)
      for (int64_t i = start; i < stop; ++i) {
        const A residual = load(x[i]) - load(x_hat[i]);
        const A inverse = inverse_scale_at<R>(i, log_sigma2, of_features, of_row), scaled = inverse * residual;
        sum += scaled * scaled;
        if constexpr (R == Noise::kElement) logs += load(log_sigma2[i]);
        if constexpr (kGradients) store(R == Noise::kRow ? slope * residual : grad * scaled * inverse, grad_x_hat[i]);
        if constexpr (kGradients && R == Noise::kElement) {
          store(gaussian_grad_log_sigma2(grad, scaled * scaled), grad_log_sigma2[i]);
        }
      }
      squares += sum;
      log_determinant += logs;
    }
    const double normaliser = static_cast<double>(data.features) * kLog2Pi + log_determinant;
    distortion[row] = static_cast<A>(squares);
    value[row] = static_cast<A>(-0.5 * (squares + normaliser));
    const bool fits = is_finite(distortion[row]);
    if (!fits) value[row] = static_cast<A>(wide_value(data, R, row, wide_squares(data, R, row)));
    if (kGradients && !(fits && is_usual<R>(grad, slope))) wide_gradients<R>(data, grad, gradients, row);
  }
}

// Gradients of x̂, and of σ² where no two rows share one.
template <Noise R, class T>
LINEAVAE_INLINE void gradients(const GaussianLogLikelihoodBackward<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const GaussianData<T>& data = a.data;
  InverseScale<R, T> inverse_scale(data);
  for (int64_t row = begin; row < end; ++row) {
    inverse_scale.to_row(row);
    const T *x = data.x_row(row), *x_hat = data.x_hat_row(row), *log_sigma2 = inverse_scale.log_sigma2();
    const A grad = a.grad[row], slope = inverse_scale.slope(grad);
    if (!is_finite(a.distortion[row]) || !is_usual<R>(grad, slope)) {
      wide_gradients<R>(data, grad, a.gradients, row);
      continue;
    }
    T* grad_x_hat = a.gradients.x_hat + row * data.features;
    T* grad_log_sigma2 = a.gradients.log_sigma2 + row * data.features;
#pragma omp simd
    for (int64_t i = 0; i < data.features; ++i) {
      const A residual = load(x[i]) - load(x_hat[i]);
      if constexpr (R == Noise::kRow) {
        store(slope * residual, grad_x_hat[i]);
      } else {
        const A inverse = lineavae::inverse_scale(load(log_sigma2[i])), scaled = inverse * residual;
        store(grad * scaled * inverse, grad_x_hat[i]);
        store(gaussian_grad_log_sigma2(grad, scaled * scaled), grad_log_sigma2[i]);
      }
    }
  }
}

template <class T>
struct FeatureGradients {
  GaussianData<T> data;
  const accumulate_t<T>* grad;  // (models, N), or null for the loss
  GaussianGradients<T> gradients;

  accumulate_t<T> grad_of(int64_t row) const { return grad ? grad[row] : data.loss_grad(); }
};

// Adds g r²/σ² of kRows rows of one model, so many at once because that reads and writes the sums less often, and
// writes their gradients of x̂.
template <int kRows, class T>
LINEAVAE_INLINE void add_rows(const FeatureGradients<T>& a, int64_t row, const accumulate_t<T>* inverse_scales,
                              accumulate_t<T>* squares) {
  using A = accumulate_t<T>;
  const T *x[kRows], *x_hat[kRows];
  T* grad_x_hat[kRows];
  A grad[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = a.data.x_row(row + r);
    x_hat[r] = a.data.x_hat_row(row + r);
    grad_x_hat[r] = a.gradients.x_hat + (row + r) * a.data.features;
    grad[r] = a.grad_of(row + r);
  }
#pragma omp simd
  for (int64_t i = 0; i < a.data.features; ++i) {
    const A inverse = inverse_scales[i];
    A sum = squares[i];
    for (int r = 0; r < kRows; ++r) {
      const A scaled = inverse * (load(x[r][i]) - load(x_hat[r][i])), weighted = grad[r] * scaled;
      store(weighted * inverse, grad_x_hat[r][i]);
      sum += weighted * scaled;
    }
    squares[i] = sum;
  }
  for (int r = 0; r < kRows; ++r) {
    if (!is_usual_grad(grad[r])) wide_gradients<Noise::kFeature>(a.data, grad[r], a.gradients, row + r);
  }
}

// For kFeature: gradients of x̂, and the sums of [begin, end) of all models' parts.
template <class T>
LINEAVAE_INLINE void feature_parts_body(const FeatureGradients<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const GaussianData<T>& data = a.data;
  InverseScale<Noise::kFeature, T> inverse_scale(data);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t model = part / a.gradients.parts, begin_of_model = model * data.samples;
    const int64_t first = begin_of_model + part % a.gradients.parts * kRowsOfPart;
    const int64_t last = std::min(first + kRowsOfPart, begin_of_model + data.samples);
    A* squares = a.gradients.squares + part * data.features;
    std::fill(squares, squares + data.features, A(0));
    inverse_scale.to_row(first);
    A grad_sum = 0;
    for (int64_t row = first; row < last; ++row) grad_sum += a.grad_of(row);
    int64_t row = first;
    for (; row + 1 < last; row += 2) add_rows<2>(a, row, inverse_scale.of_features(), squares);
    if (row < last) add_rows<1>(a, row, inverse_scale.of_features(), squares);
    a.gradients.grad_sums[part] = grad_sum;
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, feature_parts, FeatureGradients, (a.data.models * a.gradients.parts),
                    (kRowsOfPart * a.data.features))

template <class T>
LINEAVAE_INLINE void element_gradients_body(const GaussianLogLikelihoodBackward<T>& a, int64_t begin, int64_t end) {
  a.data.noise == Noise::kRow ? gradients<Noise::kRow>(a, begin, end) : gradients<Noise::kElement>(a, begin, end);
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, element_gradients, GaussianLogLikelihoodBackward, a.data.rows(),
                    a.data.features)

template <class T>
LINEAVAE_INLINE void element_mean_body(const GaussianLogLikelihoodMean<T>& a, int64_t begin, int64_t end) {
  a.data.noise == Noise::kRow ? values<Noise::kRow, true>(a.data, a.value, a.distortion, a.gradients, begin, end)
                              : values<Noise::kElement, true>(a.data, a.value, a.distortion, a.gradients, begin, end);
}
LINEAVAE_CPU_KERNEL(LINEAVAE_FLOATING, element_mean, GaussianLogLikelihoodMean, a.data.rows(), a.data.features)

template <class T>
void feature_gradients(Cpu device, const FeatureGradients<T>& a) {
  const GaussianData<T>& data = a.data;
  const int64_t parts = a.gradients.parts, D = data.features;
  feature_parts(device, a);
  const int64_t tasks = (D + kColumnsOfTask - 1) / kColumnsOfTask;
  parallel_for(data.models * tasks, parts * kColumnsOfTask, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t model = task / tasks, first = task % tasks * kColumnsOfTask;
      const int64_t last = std::min(first + kColumnsOfTask, D);
      double grad_sum = 0, squares[kColumnsOfTask] = {};
      for (int64_t part = model * parts; part < (model + 1) * parts; ++part) {
        grad_sum += a.gradients.grad_sums[part];
        for (int64_t i = first; i < last; ++i) squares[i - first] += a.gradients.squares[part * D + i];
      }
      for (int64_t i = first; i < last; ++i) {
        auto gradient = static_cast<accumulate_t<T>>(0.5 * (squares[i - first] - grad_sum));
        if (!is_finite(gradient)) {
          gradient = static_cast<accumulate_t<T>>(wide_feature(data, a.grad, model, i));
          for (int64_t row = model * data.samples; row < (model + 1) * data.samples; ++row) {
            const WideElement<accumulate_t<T>> element(load(data.x_row(row)[i]), load(data.x_hat_row(row)[i]),
                                                       load(data.log_sigma2_row(row)[i]));
            store(element.grad_x_hat(a.grad_of(row)), a.gradients.x_hat[row * D + i]);
          }
        }
        store(gradient, a.gradients.log_sigma2[model * D + i]);
      }
    }
  });
}

// The sum of term<S>(row) over [begin, end), in double or, where that is not finite, in a type with range enough.
template <class T, class F>
double sum_rows(int64_t begin, int64_t end, const F& term) {
  double sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += term.template operator()<double>(row);
  if (is_finite(sum)) return sum;
  using W = wider_t<accumulate_t<T>>;
  W wide_sum = 0;
  for (int64_t row = begin; row < end; ++row) wide_sum = wide_sum + term.template operator()<W>(row);
  return static_cast<double>(wide_sum);
}

// The gradient of σ² for kRow: of each row, or summed over the samples of each model. No `grad`: of the loss.
template <class T>
void row_noise_gradient(const GaussianData<T>& data, const accumulate_t<T>* grad, const accumulate_t<T>* distortion,
                        T* grad_log_sigma2) {
  const bool of_model = data.noise_of_sample == 0;
  const int64_t count = of_model ? data.models : data.rows(), rows = of_model ? data.samples : 1;
  for (int64_t index = 0; index < count; ++index) {
    const double gradient = sum_rows<T>(index * rows, (index + 1) * rows, [&]<class S>(int64_t row) {
      return row_noise<S>(data, grad, distortion, row);
    });
    store(static_cast<accumulate_t<T>>(gradient), grad_log_sigma2[index]);
  }
}

}  // namespace

template <class T>
LINEAVAE_INLINE void gaussian_log_likelihood_body(const GaussianLogLikelihood<T>& a, int64_t begin, int64_t end) {
  switch (a.data.noise) {
    case Noise::kRow:
      return values<Noise::kRow, false>(a.data, a.value, a.distortion, {}, begin, end);
    case Noise::kFeature:
      return values<Noise::kFeature, false>(a.data, a.value, a.distortion, {}, begin, end);
    case Noise::kElement:
      return values<Noise::kElement, false>(a.data, a.value, a.distortion, {}, begin, end);
  }
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, gaussian_log_likelihood, GaussianLogLikelihood, a.data.rows(),
                    a.data.features)

template <class T>
void gaussian_log_likelihood_backward(Cpu device, const GaussianLogLikelihoodBackward<T>& a) {
  if (a.data.noise == Noise::kFeature)
    return feature_gradients(device, FeatureGradients<T>{a.data, a.grad, a.gradients});
  element_gradients(device, a);
  if (a.data.noise == Noise::kRow) row_noise_gradient(a.data, a.grad, a.distortion, a.gradients.log_sigma2);
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cpu, gaussian_log_likelihood_backward, GaussianLogLikelihoodBackward)

template <class T>
void gaussian_log_likelihood_mean(Cpu device, const GaussianLogLikelihoodMean<T>& a) {
  const int64_t N = a.data.samples, D = a.data.features;
  if (a.data.noise == Noise::kFeature) {
    feature_gradients(device, FeatureGradients<T>{a.data, nullptr, a.gradients});
    for (int64_t model = 0; model < a.data.models; ++model) {
      double sum = N == 0 ? std::numeric_limits<double>::quiet_NaN() : 0;
      // the mean is -½ Σ_i (q_i + s_i + log 2π) with ½ q_i = ½ - ∂s_i
      for (int64_t i = 0; i < D; ++i) {
        const double log_sigma2 = a.data.log_sigma2[model * a.data.noise_of_model + i];
        sum += a.gradients.log_sigma2[model * D + i] - 0.5 * (1.0 + log_sigma2 + kLog2Pi);
      }
      a.mean[model] = static_cast<T>(sum);
    }
  } else {
    element_mean(device, a);
    for (int64_t model = 0; model < a.data.models; ++model) {
      const double mean = sum_rows<T>(model * N, (model + 1) * N, [&]<class S>(int64_t row) {
        return S(1 / static_cast<double>(N)) * saved_value<S>(a.data, a.data.noise, a.value, row);
      });
      a.mean[model] = static_cast<T>(N == 0 ? std::numeric_limits<double>::quiet_NaN() : mean);
    }
    if (a.data.noise == Noise::kRow) {
      row_noise_gradient<T>(a.data, nullptr, a.distortion, a.gradients.log_sigma2);
    }
  }
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cpu, gaussian_log_likelihood_mean, GaussianLogLikelihoodMean)

}  // namespace lineavae
