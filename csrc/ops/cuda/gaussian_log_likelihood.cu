// Rows: a warp, or for long rows a block, per row, kWidth elements per lane and step. Gradients: kWidth elements per
// thread. What features share: a block per tile of columns and part of the samples, then a warp per eighth of the
// parts. The data are read once by each of them; accumulation is in float, or double for double, over samples in
// double, in a fixed order. Deterministic. What is not finite is done again in the wider type, sums by one thread.
#include "common/cuda.cuh"
#include "ops/gaussian_log_likelihood.h"

namespace lineavae {
namespace cuda {

// From this many features on a row has a block.
constexpr int64_t kLongRow = 4096;

// Per multiprocessor: so many that no kernel needs to spill registers for more.
template <class T>
constexpr int kBlocksOfRows = sizeof(T) == 8 ? 4 : 5;
template <class T>
constexpr int kBlocksOfElements = sizeof(T) == 8 ? 6 : 8;
constexpr int kBlocksOfParts = 4;
constexpr int kBlocksOfSums = 3;

// For Noise::kRow one precision for the row, for both others one per element of it.
template <Noise R, class T, int kWidth>
__device__ __forceinline__ Vector<accumulate_t<T>, kWidth> log_variances(const T* log_sigma2, int64_t i) {
  Vector<accumulate_t<T>, kWidth> logs;
  if constexpr (R == Noise::kRow) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) logs.at[j] = load(log_sigma2[0]);
  } else {
    const auto loaded = load_vector<kWidth>(log_sigma2 + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) logs.at[j] = load(loaded.at[j]);
  }
  return logs;
}

// kLanes threads per row. Where kGradients those of x̂, and of σ² for kElement, of the loss.
template <Noise R, bool kGradients, class T, int kWidth, int kLanes>
__global__ void __launch_bounds__(kThreads, resident(kBlocksOfRows<T>))
    gaussian_rows(const GaussianData<T> data, accumulate_t<T>* value, accumulate_t<T>* distortion, T* grad_x_hat,
                  T* grad_log_sigma2) {
  using A = accumulate_t<T>;
  LINEAVAE_SHARED(partial, A[kWarps]);
  const int64_t row = kLanes == kWarp ? warp_row() : blockIdx.x;
  if (row >= data.rows()) return;
  const T *x = data.x_row(row), *x_hat = data.x_hat_row(row), *log_sigma2 = data.log_sigma2_row(row);
  const A grad = data.loss_grad();
  const A of_row = R == Noise::kRow ? inverse_scale(load(log_sigma2[0])) : A(0);
  A squares = 0, logs = 0;
  for (int64_t i = threadIdx.x % kLanes * kWidth; i < data.features; i += kLanes * kWidth) {
    const auto a = load_vector<kWidth>(x + i);
    const auto b = load_vector<kWidth>(x_hat + i);
    const auto s = log_variances<R, T, kWidth>(log_sigma2, i);
    Vector<T, kWidth> of_x_hat, of_log_sigma2;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const A residual = load(a.at[j]) - load(b.at[j]);
      const A inverse = R == Noise::kRow ? of_row : inverse_scale(s.at[j]), scaled = inverse * residual;
      squares += scaled * scaled;
      if constexpr (R != Noise::kRow) logs += s.at[j];
      if constexpr (kGradients) store(grad * scaled * inverse, of_x_hat.at[j]);
      if constexpr (kGradients && R == Noise::kElement) {
        store(gaussian_grad_log_sigma2(grad, scaled * scaled), of_log_sigma2.at[j]);
      }
    }
    if constexpr (kGradients) store_vector(grad_x_hat + row * data.features + i, of_x_hat);
    if constexpr (kGradients && R == Noise::kElement) {
      store_vector(grad_log_sigma2 + row * data.features + i, of_log_sigma2);
    }
  }
  if constexpr (kLanes == kWarp) {
    squares = warp_sum(squares);
    if constexpr (R != Noise::kRow) logs = warp_sum(logs);
  } else {
    squares = block_sum(squares, partial);
    if constexpr (R != Noise::kRow) logs = block_sum(logs, partial);
  }
  if (threadIdx.x % kLanes == 0) {
    distortion[row] = squares;
    if (is_finite(squares)) {
      const double features = static_cast<double>(data.features);
      const double log_determinant = R == Noise::kRow ? features * load(log_sigma2[0]) : double{logs};
      value[row] = static_cast<A>(-0.5 * (squares + features * kLog2Pi + log_determinant));
    } else {
      value[row] = static_cast<A>(wide_value(data, R, row, wide_squares(data, R, row)));
    }
  }
  if constexpr (kGradients) {
    if (is_finite(squares) && is_usual_grad(grad)) return;
    LINEAVAE_ROLLED
    for (int64_t i = threadIdx.x % kLanes * kWidth; i < data.features; i += kLanes * kWidth) {
      LINEAVAE_ROLLED
      for (int64_t j = i; j < i + kWidth; ++j) {  // those that this thread has written
        const WideElement<A> element(load(x[j]), load(x_hat[j]), load(log_sigma2[R == Noise::kRow ? 0 : j]));
        store(element.grad_x_hat(grad), grad_x_hat[row * data.features + j]);
        if constexpr (R == Noise::kElement) {
          store(static_cast<A>(element.grad_log_sigma2(grad)), grad_log_sigma2[row * data.features + j]);
        }
      }
    }
  }
}

// With kWidth > 1 the features are a multiple of it, so that a vector lies within one row.
template <Noise R, class T, int kWidth>
__global__ void __launch_bounds__(kThreads, resident(kBlocksOfElements<T>))
    gaussian_gradients(const GaussianLogLikelihoodBackward<T> a) {
  using A = accumulate_t<T>;
  const int64_t index = thread_index() * kWidth;
  if (index >= a.data.rows() * a.data.features) return;
  const int64_t row = index / a.data.features, i = index % a.data.features;
  const A grad = a.grad[row];
  const T *x_at = a.data.x_row(row) + i, *x_hat_at = a.data.x_hat + index, *log_sigma2 = a.data.log_sigma2_row(row);
  const auto x = load_vector<kWidth>(x_at);
  const auto x_hat = load_vector<kWidth>(x_hat_at);
  const auto s = log_variances<R, T, kWidth>(log_sigma2, i);
  Vector<T, kWidth> of_x_hat, of_log_sigma2;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const A inverse = inverse_scale(s.at[j]), scaled = inverse * (load(x.at[j]) - load(x_hat.at[j]));
    store(grad * scaled * inverse, of_x_hat.at[j]);
    if constexpr (R == Noise::kElement) {
      store(gaussian_grad_log_sigma2(grad, scaled * scaled), of_log_sigma2.at[j]);
    }
  }
  store_vector(a.gradients.x_hat + index, of_x_hat);
  if constexpr (R == Noise::kElement) store_vector(a.gradients.log_sigma2 + index, of_log_sigma2);
  if (is_finite(a.distortion[row]) && is_usual_grad(grad)) return;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const WideElement<A> element(load(x_at[j]), load(x_hat_at[j]), load(log_sigma2[R == Noise::kRow ? 0 : i + j]));
    store(element.grad_x_hat(grad), a.gradients.x_hat[index + j]);
    if constexpr (R == Noise::kElement) {
      store(static_cast<A>(element.grad_log_sigma2(grad)), a.gradients.log_sigma2[index + j]);
    }
  }
}

// For kRow where each row has its variance. No `grad`: of the loss.
template <class T>
__global__ void __launch_bounds__(kThreads) gaussian_row_noise(const GaussianData<T> data, const accumulate_t<T>* grad,
                                                               const accumulate_t<T>* distortion, T* grad_log_sigma2) {
  using A = accumulate_t<T>;
  const int64_t row = thread_index();
  if (row >= data.rows()) return;
  store(static_cast<A>(row_noise<wider_t<A>>(data, grad, distortion, row)), grad_log_sigma2[row]);
}

// The sum of term<S>(row) over the rows of a model, in every thread of its block: in double or, where that is not
// finite, in a type with range enough, by each thread alone.
template <class T, class F>
__device__ __forceinline__ double sum_rows(int64_t begin, int64_t end, double (&partial)[kWarps], const F& term) {
  double sum = 0;
  for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) sum += term(double(), row);
  sum = block_sum(sum, partial);
  if (is_finite(sum)) return sum;
  wider_t<accumulate_t<T>> wide_sum = 0;
  LINEAVAE_ROLLED
  for (int64_t row = begin; row < end; ++row) wide_sum = wide_sum + term(wide_sum, row);
  return static_cast<double>(wide_sum);
}

// One block per model: the mean of the values, and for kRow with one variance per model its gradient, where asked for.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfSums)
    gaussian_sample_sums(const GaussianData<T> data, Noise noise, const accumulate_t<T>* grad,
                         const accumulate_t<T>* distortion, const accumulate_t<T>* value, T* grad_log_sigma2,
                         accumulate_t<T>* mean) {
  using A = accumulate_t<T>;
  LINEAVAE_SHARED(partial, double[kWarps]);
  const int64_t model = blockIdx.x, begin = model * data.samples, end = begin + data.samples;
  if (grad_log_sigma2) {
    const double gradient = sum_rows<T>(begin, end, partial, [&](auto zero, int64_t row) {
      return row_noise<decltype(zero)>(data, grad, distortion, row);
    });
    if (threadIdx.x == 0) store(static_cast<A>(gradient), grad_log_sigma2[model]);
  }
  if (mean) {
    const double samples = static_cast<double>(data.samples);
    const double average = sum_rows<T>(begin, end, partial, [&](auto zero, int64_t row) {
      using S = decltype(zero);
      return S(1 / samples) * saved_value<S>(data, noise, value, row);
    });
    if (threadIdx.x == 0) mean[model] = static_cast<A>(data.samples == 0 ? NAN : average);
  }
}

// For kFeature: gradients of x̂, and sums over one part of the samples. No `grad`: of the loss.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksOfParts)
    gaussian_feature_parts(const GaussianData<T> data, const accumulate_t<T>* grad,
                           const GaussianGradients<T> gradients, int64_t tiles) {
  using A = accumulate_t<T>;
  const int64_t tile = blockIdx.x % tiles, part = blockIdx.x / tiles, model = part / gradients.parts;
  const int64_t i = (tile * kThreads + threadIdx.x) * kWidth;
  const int64_t rows = (data.samples + gradients.parts - 1) / gradients.parts;
  const int64_t first = part % gradients.parts * rows;
  const int64_t last = first + rows < data.samples ? first + rows : data.samples;
  if (i >= data.features) return;
  const auto s = log_variances<Noise::kFeature, T, kWidth>(data.log_sigma2 + model * data.noise_of_model, i);
  Vector<A, kWidth> inverse, squares;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    inverse.at[j] = inverse_scale(s.at[j]);
    squares.at[j] = 0;
  }
  const int64_t row = model * data.samples + first, offset = row * data.features + i;
  const T* x_row = data.x + (data.shared_x ? first * data.features + i : offset);
  const T* x_hat_row = data.x_hat + offset;
  T* grad_row = gradients.x_hat + offset;
  const A of_loss = data.loss_grad();
  A grad_sum = 0;
  bool fits = true;
#pragma unroll 2
  for (int64_t n = 0; n < last - first; ++n) {
    const A weight = grad ? grad[row + n] : of_loss;
    const auto x = load_vector<kWidth>(x_row);
    const auto x_hat = load_vector<kWidth>(x_hat_row);
    Vector<T, kWidth> of_x_hat;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const A scaled = inverse.at[j] * (load(x.at[j]) - load(x_hat.at[j]));
      const A weighted = weight * scaled;
      store(weighted * inverse.at[j], of_x_hat.at[j]);
      squares.at[j] += weighted * scaled;
    }
    store_vector(grad_row, of_x_hat);
    grad_sum += weight;
    fits = fits && is_usual_grad(weight);
    x_row += data.features;
    x_hat_row += data.features;
    grad_row += data.features;
  }
  store_vector(gradients.squares + part * data.features + i, squares);
  if (i == 0) gradients.grad_sums[part] = grad_sum;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) fits = fits && is_finite(squares.at[j]);
  if (fits) return;
  const int64_t first_of_model = model * data.samples;
  LINEAVAE_ROLLED
  for (int64_t n = row; n < row + last - first; ++n) {
    LINEAVAE_ROLLED
    for (int64_t j = i; j < i + kWidth; ++j) {
      const WideElement<A> element(load(data.x[(data.shared_x ? n - first_of_model : n) * data.features + j]),
                                   load(data.x_hat[n * data.features + j]),
                                   load(data.log_sigma2[model * data.noise_of_model + j]));
      store(element.grad_x_hat(grad ? grad[n] : of_loss), gradients.x_hat[n * data.features + j]);
    }
  }
}

// A block per 32 features: each warp takes every eighth part, then the warps' sums are added.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksOfSums)
    gaussian_feature_sums(const GaussianData<T> data, const accumulate_t<T>* grad,
                          const GaussianGradients<T> gradients) {
  LINEAVAE_SHARED(partial_squares, double[kWarps][kWarp]);
  LINEAVAE_SHARED(partial_grads, double[kWarps]);
  const int64_t blocks_across = (data.features + kWarp - 1) / kWarp;
  const int64_t model = blockIdx.x / blocks_across, i = blockIdx.x % blocks_across * kWarp + lane();
  const int warp = threadIdx.x / kWarp;
  double squares = 0, grad_sum = 0;
  for (int64_t part = warp; part < gradients.parts; part += kWarps) {
    const int64_t index = model * gradients.parts + part;
    if (i < data.features) squares += gradients.squares[index * data.features + i];
    grad_sum += gradients.grad_sums[index];
  }
  partial_squares[warp][lane()] = squares;
  if (lane() == 0) partial_grads[warp] = grad_sum;
  __syncthreads();
  if (warp == 0 && i < data.features) {
    squares = grad_sum = 0;
    for (int other = 0; other < kWarps; ++other) {
      squares += partial_squares[other][lane()];
      grad_sum += partial_grads[other];
    }
    auto gradient = static_cast<accumulate_t<T>>(0.5 * (squares - grad_sum));
    if (!is_finite(gradient)) gradient = static_cast<accumulate_t<T>>(wide_feature(data, grad, model, i));
    store(gradient, gradients.log_sigma2[model * data.features + i]);
  }
}

// One block per model: the mean is -½ Σ_i (q_i + s_i + log 2π) with ½ q_i = ½ - ∂s_i.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gaussian_feature_mean(const GaussianData<T> data, const T* grad_log_sigma2, T* mean) {
  LINEAVAE_SHARED(partial, double[kWarps]);
  const int64_t model = blockIdx.x;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < data.features; i += kThreads) {
    const double log_sigma2 = data.log_sigma2[model * data.noise_of_model + i];
    sum += grad_log_sigma2[model * data.features + i] - 0.5 * (1.0 + log_sigma2 + kLog2Pi);
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) mean[model] = static_cast<T>(data.samples == 0 ? NAN : sum);
}

// Whether whole vectors can be read and written: rows of x, x̂ and their gradient, and elements of σ².
template <class T>
bool has_vectors(const GaussianData<T>& data, const GaussianGradients<T>& gradients) {
  constexpr int kWidth = kFullWidth<T>;
  return data.features % kWidth == 0 && are_aligned<kWidth>(data.x, data.x_hat, gradients.x_hat) &&
         (data.noise == Noise::kRow || are_aligned<kWidth>(data.log_sigma2)) &&
         (data.noise != Noise::kElement || are_aligned<kWidth>(gradients.log_sigma2));
}

// The noise of features is that of elements to them.
template <Noise R, bool kGradients, class T>
void launch_rows(Cuda device, const GaussianData<T>& data, accumulate_t<T>* value, accumulate_t<T>* distortion,
                 const GaussianGradients<T>& gradients) {
  constexpr int kWidth = kFullWidth<T>;
  const auto start = [&](auto kernel, dim3 grid) {
    launch(kernel, grid, kThreads, device, data, value, distortion, gradients.x_hat, gradients.log_sigma2);
  };
  if (!has_vectors(data, gradients)) {
    start(&gaussian_rows<R, kGradients, T, 1, kWarp>, blocks_of_rows(data.rows()));
  } else if (data.features < kLongRow) {
    start(&gaussian_rows<R, kGradients, T, kWidth, kWarp>, blocks_of_rows(data.rows()));
  } else {
    start(&gaussian_rows<R, kGradients, T, kWidth, kThreads>, blocks(data.rows()));
  }
}

template <class T>
void launch_features(Cuda device, const GaussianData<T>& data, const accumulate_t<T>* grad,
                     const GaussianGradients<T>& gradients) {
  constexpr int kWidth = kFullWidth<T>;
  const auto start = [&](auto kernel, int64_t width) {
    const int64_t tiles = (data.features + kThreads * width - 1) / (kThreads * width);
    launch(kernel, blocks(data.models * gradients.parts * tiles), kThreads, device, data, grad, gradients, tiles);
  };
  if (has_vectors(data, gradients)) {
    start(&gaussian_feature_parts<T, kWidth>, kWidth);
  } else {
    start(&gaussian_feature_parts<T, 1>, 1);
  }
  launch(&gaussian_feature_sums<T>, blocks(data.models * ((data.features + kWarp - 1) / kWarp)), kThreads, device, data,
         grad, gradients);
}

template <Noise R, class T>
void launch_gradients(Cuda device, const GaussianLogLikelihoodBackward<T>& a) {
  constexpr int kWidth = kFullWidth<T>;
  const int64_t size = a.data.rows() * a.data.features;
  if (has_vectors(a.data, a.gradients)) {
    launch(&gaussian_gradients<R, T, kWidth>, blocks_of_threads(size / kWidth), kThreads, device, a);
  } else {
    launch(&gaussian_gradients<R, T, 1>, blocks_of_threads(size), kThreads, device, a);
  }
}

}  // namespace cuda

template <class T>
void gaussian_log_likelihood(Cuda device, const GaussianLogLikelihood<T>& a) {
  using namespace cuda;
  a.data.noise == Noise::kRow ? launch_rows<Noise::kRow, false>(device, a.data, a.value, a.distortion, {})
                              : launch_rows<Noise::kElement, false>(device, a.data, a.value, a.distortion, {});
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_log_likelihood, GaussianLogLikelihood)

template <class T>
void gaussian_log_likelihood_backward(Cuda device, const GaussianLogLikelihoodBackward<T>& a) {
  using namespace cuda;
  if (a.data.noise == Noise::kFeature) return launch_features(device, a.data, a.grad, a.gradients);
  if (a.data.noise == Noise::kElement) return launch_gradients<Noise::kElement>(device, a);
  launch_gradients<Noise::kRow>(device, a);
  if (a.data.noise_of_sample == 0) {
    launch(&gaussian_sample_sums<T>, blocks(a.data.models), kThreads, device, a.data, Noise::kRow, a.grad, a.distortion,
           nullptr, a.gradients.log_sigma2, nullptr);
  } else {
    launch(&gaussian_row_noise<T>, blocks_of_threads(a.data.rows()), kThreads, device, a.data, a.grad, a.distortion,
           a.gradients.log_sigma2);
  }
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_log_likelihood_backward, GaussianLogLikelihoodBackward)

template <class T>
void gaussian_log_likelihood_mean(Cuda device, const GaussianLogLikelihoodMean<T>& a) {
  using namespace cuda;
  if (a.data.noise == Noise::kFeature) {
    launch_features<T>(device, a.data, nullptr, a.gradients);
    launch(&gaussian_feature_mean<T>, blocks(a.data.models), kThreads, device, a.data, a.gradients.log_sigma2, a.mean);
    return;
  }
  const bool of_rows = a.data.noise == Noise::kRow, one_per_model = of_rows && a.data.noise_of_sample == 0;
  of_rows ? launch_rows<Noise::kRow, true>(device, a.data, a.value, a.distortion, a.gradients)
          : launch_rows<Noise::kElement, true>(device, a.data, a.value, a.distortion, a.gradients);
  launch(&gaussian_sample_sums<T>, blocks(a.data.models), kThreads, device, a.data, a.data.noise, nullptr, a.distortion,
         a.value, one_per_model ? a.gradients.log_sigma2 : nullptr, a.mean);
  if (of_rows && !one_per_model) {
    launch(&gaussian_row_noise<T>, blocks_of_threads(a.data.rows()), kThreads, device, a.data, nullptr, a.distortion,
           a.gradients.log_sigma2);
  }
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_log_likelihood_mean, GaussianLogLikelihoodMean)

}  // namespace lineavae
