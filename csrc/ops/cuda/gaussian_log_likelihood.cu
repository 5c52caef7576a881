// Rows: as GaussianRowGrid says, kWidth elements per lane and step; the sums of a row in several blocks, and of the
// mean form, are added up by the last of these blocks. Gradients: kWidth elements per thread, and the sums over samples
// that they need no part of in the first blocks. What features share: a block per tile of columns and part of the
// samples, then a warp per eighth of the parts. The data are read once by each of them; accumulation is in float, or
// double for double, over warps and samples in double, in a fixed order. Deterministic. What is not finite is done
// again in the wider type, sums by one thread.
#include "common/cuda.cuh"
#include "ops/gaussian_log_likelihood.h"

namespace lineavae {
namespace cuda {

// Per multiprocessor: so many that no kernel needs to spill registers for more.
constexpr int kBlocksOfRows = 3;
template <Noise R, class T>
constexpr int kBlocksOfElements = sizeof(T) == 8     ? 5
                                  : R == Noise::kRow ? 8
                                                     : 6;
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

// The sums of the parts, in every thread of their block.
__device__ __forceinline__ GaussianSums add_parts(const GaussianSums* parts, int64_t count,
                                                  double (&partial)[2][kWarps]) {
  GaussianSums sums{0, 0};
  for (int64_t part = threadIdx.x; part < count; part += kThreads) {
    const GaussianSums of_part = load_vector<1>(parts + part).at[0];
    sums.squares += of_part.squares;
    sums.logs += of_part.logs;
  }
  return {block_sum(sums.squares, partial[0]), block_sum(sums.logs, partial[1])};
}

template <class T>
struct GaussianRows {
  GaussianData<T> data;
  accumulate_t<T>* value;
  accumulate_t<T>* distortion;
  GaussianWork work;
  int lanes_log2;
  int64_t rows;                // of a group
  AnyDivisor blocks, samples;  // of a group, of a model
  T* mean = nullptr;           // of the mean form, as all that follows
  T* grad_x_hat = nullptr;
  T* grad_log_sigma2 = nullptr;
  GaussianWork of_models{};

  GaussianRows(const GaussianData<T>& data_, accumulate_t<T>* value_, accumulate_t<T>* distortion_, GaussianWork work_,
               const GaussianRowGrid& grid)
      : data(data_),
        value(value_),
        distortion(distortion_),
        work(work_),
        lanes_log2(grid.lanes_log2),
        rows(grid.rows),
        blocks(grid.blocks, grid.groups * grid.blocks),
        samples(data.samples, data.rows()) {}
};

// The value of a row from its sums, and for the mean form the gradient of its variance.
template <Noise R, bool kMean, class T>
__device__ __forceinline__ void finish_row(const GaussianRows<T>& a, int64_t row, GaussianSums& sums) {
  using A = accumulate_t<T>;
  const GaussianData<T>& data = a.data;
  const double features = static_cast<double>(data.features);
  if constexpr (R == Noise::kRow) sums.logs = features * load(data.log_sigma2_row(row)[0]);
  const A squares = static_cast<A>(sums.squares);
  a.distortion[row] = squares;
  if (is_finite(squares)) {
    a.value[row] = static_cast<A>(-0.5 * (sums.squares + features * kLog2Pi + sums.logs));
  } else {
    a.value[row] = static_cast<A>(wide_value(data, R, row, wide_squares(data, R, row)));
  }
  if constexpr (kMean && R == Noise::kRow) {
    if (data.noise_of_sample != 0) {
      store(static_cast<A>(row_noise<wider_t<A>>(data, nullptr, a.distortion, row)), a.grad_log_sigma2[row]);
    }
  }
}

// The mean of a model from the sums of all its rows, and for kRow with one variance per model its gradient.
template <Noise R, class T>
__device__ __forceinline__ void finish_model(const GaussianRows<T>& a, int64_t model, const GaussianSums& sums) {
  using A = accumulate_t<T>;
  const GaussianData<T>& data = a.data;
  const double samples = static_cast<double>(data.samples), features = static_cast<double>(data.features);
  const double squares = sums.squares / samples;
  double mean = -0.5 * (squares + sums.logs / samples + features * kLog2Pi), of_noise = -0.5 * (squares - features);
  if (!is_finite(squares)) {
    const int64_t begin = model * data.samples, end = begin + data.samples;
    wider_t<A> wide_mean = 0, wide_noise = 0;
    LINEAVAE_ROLLED
    for (int64_t row = begin; row < end; ++row) {
      wide_mean = wide_mean + wider_t<A>(1 / samples) * saved_value<wider_t<A>>(data, R, a.value, row);
      if constexpr (R == Noise::kRow) {
        wide_noise = wide_noise + row_noise<wider_t<A>>(data, nullptr, a.distortion, row);
      }
    }
    mean = static_cast<double>(wide_mean);
    of_noise = static_cast<double>(wide_noise);
  }
  a.mean[model] = static_cast<A>(data.samples == 0 ? NAN : mean);
  if (R == Noise::kRow && data.noise_of_sample == 0) store(static_cast<A>(of_noise), a.grad_log_sigma2[model]);
}

// The mean form, where kMean: also the gradients of x̂, and of σ² for kRow and kElement, of the loss.
template <Noise R, bool kMean, class T, int kWidth>
__global__ void __launch_bounds__(kThreads, resident(kBlocksOfRows)) gaussian_rows(const GaussianRows<T> a) {
  using A = accumulate_t<T>;
  // How many are loaded before the first is used: as many as there are registers for.
  constexpr int kSteps = (R == Noise::kRow ? 4 : 2) / (kMean || sizeof(A) == sizeof(double) ? 2 : 1);
  LINEAVAE_SHARED(partial, double[2][kWarps]);
  const GaussianData<T>& data = a.data;
  const int64_t group = a.blocks.quotient(blockIdx.x), block = blockIdx.x - group * a.blocks.divisor();
  const unsigned rows_of_block = kThreads >> a.lanes_log2;
  const int64_t end = (group + 1) * a.rows, first = group * a.rows + block * rows_of_block;
  A squares = 0, logs = 0;
  if (const int64_t row = first + (threadIdx.x >> a.lanes_log2); row < end) {
    const int64_t model = a.samples.quotient(row), sample = row - model * data.samples;
    const T *x = data.x_row(model, sample), *x_hat = data.x_hat_row(row);
    const T* log_sigma2 = data.log_sigma2_row(model, sample);
    const A grad = data.loss_grad();
    const A of_row = R == Noise::kRow ? inverse_scale(load(log_sigma2[0])) : A(0);
    const unsigned lanes = 1u << a.lanes_log2, step = gridDim.y * lanes * kWidth;
    const unsigned own = (blockIdx.y * lanes + (threadIdx.x & (lanes - 1))) * kWidth;
    T *grad_x_hat = a.grad_x_hat + row * data.features, *grad_log_sigma2 = a.grad_log_sigma2 + row * data.features;
#pragma unroll 1  // the steps are enough
    for (int64_t start = own; start < data.features; start += kSteps * step) {
      Vector<T, kWidth> of_x[kSteps], of_x_hat[kSteps];
      Vector<A, kWidth> s[kSteps];
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
        const int64_t i = start + n * step;
        if (i >= data.features) break;
        of_x[n] = load_vector<kWidth>(x + i);
        of_x_hat[n] = load_vector<kWidth>(x_hat + i);
        s[n] = log_variances<R, T, kWidth>(log_sigma2, i);
      }
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
        const int64_t i = start + n * step;
        if (i >= data.features) break;
        Vector<T, kWidth> of_log_sigma2;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const A residual = load(of_x[n].at[j]) - load(of_x_hat[n].at[j]);
          const A inverse = R == Noise::kRow ? of_row : inverse_scale(s[n].at[j]), scaled = inverse * residual;
          squares += scaled * scaled;
          if constexpr (R != Noise::kRow) logs += s[n].at[j];
          if constexpr (kMean) store(grad * scaled * inverse, of_x_hat[n].at[j]);
          if constexpr (kMean && R == Noise::kElement) {
            store(gaussian_grad_log_sigma2(grad, scaled * scaled), of_log_sigma2.at[j]);
          }
        }
        if constexpr (kMean) store_vector(grad_x_hat + i, of_x_hat[n]);
        if constexpr (kMean && R == Noise::kElement) store_vector(grad_log_sigma2 + i, of_log_sigma2);
      }
    }
    if constexpr (kMean) {
      if (!is_finite(squares) || !is_usual_grad(grad)) {
        LINEAVAE_ROLLED
        for (int64_t i = own; i < data.features; i += step) {
          LINEAVAE_ROLLED
          for (int64_t j = i; j < i + kWidth; ++j) {  // those that this thread has written
            const WideElement<A> element(load(x[j]), load(x_hat[j]), load(log_sigma2[R == Noise::kRow ? 0 : j]));
            store(element.grad_x_hat(grad), grad_x_hat[j]);
            if constexpr (R == Noise::kElement) {
              store(static_cast<A>(element.grad_log_sigma2(grad)), grad_log_sigma2[j]);
            }
          }
        }
      }
    }
  }
  squares = warp_sum(squares);
  if constexpr (R != Noise::kRow) logs = warp_sum(logs);
  if (lane() == 0) {
    partial[0][threadIdx.x / kWarp] = squares;
    partial[1][threadIdx.x / kWarp] = logs;
  }
  __syncthreads();

  // The first threads finish a row each.
  GaussianSums sums{0, 0};
  if (threadIdx.x < rows_of_block) {
    const unsigned warps = kWarps / rows_of_block;
    for (unsigned warp = threadIdx.x * warps; warp < (threadIdx.x + 1) * warps; ++warp) {
      sums.squares += partial[0][warp];
      sums.logs += partial[1][warp];
    }
  }
  if (gridDim.y > 1) {  // a row is a group of blocks
    GaussianSums* parts = a.work.parts + first * gridDim.y;
    if (threadIdx.x == 0) store_vector(parts + blockIdx.y, Vector<GaussianSums, 1>{sums});
    if (!is_last_block(a.work.tickets + first, gridDim.y)) return;
    sums = add_parts(parts, gridDim.y, partial);
  }
  if (threadIdx.x < rows_of_block && first + threadIdx.x < end) finish_row<R, kMean>(a, first + threadIdx.x, sums);
  if constexpr (kMean) {
    if (threadIdx.x < kWarp) {
      const bool has_row = threadIdx.x < rows_of_block;  // beyond the last row sums are 0
      sums = {warp_sum(has_row ? sums.squares : 0.0), warp_sum(has_row ? sums.logs : 0.0)};
    }
    if (threadIdx.x == 0) store_vector(a.of_models.parts + blockIdx.x, Vector<GaussianSums, 1>{sums});
    if (!is_last_block(a.of_models.tickets + group, a.blocks.divisor())) return;
    sums = add_parts(a.of_models.parts + group * a.blocks.divisor(), a.blocks.divisor(), partial);
    if (threadIdx.x == 0) finish_model<R>(a, group, sums);
  }
}

// For kRow, whose gradient needs no pass over the data: of each row, or a block per model for the sum over its samples.
template <class T>
__device__ __forceinline__ void gaussian_row_noise(const GaussianLogLikelihoodBackward<T>& a) {
  using A = accumulate_t<T>;
  LINEAVAE_SHARED(partial, double[kWarps]);
  const GaussianData<T>& data = a.data;
  if (data.noise_of_sample != 0) {
    const int64_t row = thread_index();
    if (row >= data.rows()) return;
    store(static_cast<A>(row_noise<wider_t<A>>(data, a.grad, a.distortion, row)), a.gradients.log_sigma2[row]);
    return;
  }
  const int64_t model = blockIdx.x, begin = model * data.samples, end = begin + data.samples;
  double sum = 0;
  for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
    sum += 0.5 * a.grad[row] * (a.distortion[row] - static_cast<double>(data.features));
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x != 0) return;
  if (!is_finite(sum)) {
    wider_t<A> wide_sum = 0;
    LINEAVAE_ROLLED
    for (int64_t row = begin; row < end; ++row) {
      wide_sum = wide_sum + row_noise<wider_t<A>>(data, a.grad, a.distortion, row);
    }
    sum = static_cast<double>(wide_sum);
  }
  store(static_cast<A>(sum), a.gradients.log_sigma2[model]);
}

// With kWidth > 1 the features are a multiple of it, so that a vector lies within one row.
template <Noise R, class T, int kWidth>
__global__ void __launch_bounds__(kThreads, resident(kBlocksOfElements<R, T>))
    gaussian_gradients(const GaussianLogLikelihoodBackward<T> a, int64_t noise_blocks, AnyDivisor vectors,
                       AnyDivisor samples) {
  using A = accumulate_t<T>;
  if (R == Noise::kRow && blockIdx.x < noise_blocks) return gaussian_row_noise(a);
  const int64_t vector = thread_index() - noise_blocks * kThreads, row = vectors.quotient(vector);
  if (row >= a.data.rows()) return;
  const int64_t index = vector * kWidth, i = index - row * a.data.features;
  const int64_t model = samples.quotient(row), sample = row - model * a.data.samples;
  const A grad = a.grad[row];
  const T *x_at = a.data.x_row(model, sample) + i, *x_hat_at = a.data.x_hat + index,
          *log_sigma2 = a.data.log_sigma2_row(model, sample);
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
  LINEAVAE_ROLLED
  for (int j = 0; j < kWidth; ++j) {
    const WideElement<A> element(load(x_at[j]), load(x_hat_at[j]), load(log_sigma2[R == Noise::kRow ? 0 : i + j]));
    store(element.grad_x_hat(grad), a.gradients.x_hat[index + j]);
    if constexpr (R == Noise::kElement) {
      store(static_cast<A>(element.grad_log_sigma2(grad)), a.gradients.log_sigma2[index + j]);
    }
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
bool has_vectors(const GaussianData<T>& data, const T* grad_x_hat, const T* grad_log_sigma2) {
  constexpr int kWidth = kFullWidth<T>;
  return data.features % kWidth == 0 && are_aligned<kWidth>(data.x, data.x_hat, grad_x_hat) &&
         (data.noise == Noise::kRow || are_aligned<kWidth>(data.log_sigma2)) &&
         (data.noise != Noise::kElement || are_aligned<kWidth>(grad_log_sigma2));
}

// The noise of features is that of elements to them.
template <Noise R, bool kMean, class T>
void launch_rows(Cuda device, const GaussianRows<T>& a, const GaussianRowGrid& grid) {
  constexpr int kWidth = kFullWidth<T>;
  dim3 size = blocks(grid.groups * grid.blocks);
  size.y = static_cast<unsigned>(grid.slices);
  launch(has_vectors(a.data, a.grad_x_hat, a.grad_log_sigma2) ? &gaussian_rows<R, kMean, T, kWidth>
                                                              : &gaussian_rows<R, kMean, T, 1>,
         size, kThreads, device, a);
}

template <class T>
void launch_features(Cuda device, const GaussianData<T>& data, const accumulate_t<T>* grad,
                     const GaussianGradients<T>& gradients) {
  constexpr int kWidth = kFullWidth<T>;
  const auto start = [&](auto kernel, int64_t width) {
    const int64_t tiles = (data.features + kThreads * width - 1) / (kThreads * width);
    launch(kernel, blocks(data.models * gradients.parts * tiles), kThreads, device, data, grad, gradients, tiles);
  };
  if (has_vectors(data, gradients.x_hat, gradients.log_sigma2)) {
    start(&gaussian_feature_parts<T, kWidth>, kWidth);
  } else {
    start(&gaussian_feature_parts<T, 1>, 1);
  }
  launch(&gaussian_feature_sums<T>, blocks(data.models * ((data.features + kWarp - 1) / kWarp)), kThreads, device, data,
         grad, gradients);
}

template <Noise R, class T>
void launch_gradients(Cuda device, const GaussianLogLikelihoodBackward<T>& a) {
  const GaussianData<T>& data = a.data;
  const dim3 of_rows = blocks_of_threads(data.rows());
  const int64_t noise_blocks = R != Noise::kRow ? 0 : data.noise_of_sample == 0 ? data.models : of_rows.x;
  const auto start = [&](auto kernel, int width) {
    const int64_t vectors = data.features / width, threads = data.rows() * vectors;
    const int64_t num_blocks = noise_blocks + blocks_of_threads(threads).x;
    // the threads of the last block go beyond the last row
    launch(kernel, blocks(num_blocks), kThreads, device, a, noise_blocks, AnyDivisor(vectors, threads + kThreads),
           AnyDivisor(data.samples, data.rows()));
  };
  constexpr int kWidth = kFullWidth<T>;
  has_vectors(data, a.gradients.x_hat, a.gradients.log_sigma2) ? start(&gaussian_gradients<R, T, kWidth>, kWidth)
                                                               : start(&gaussian_gradients<R, T, 1>, 1);
}

}  // namespace cuda

template <class T>
void gaussian_log_likelihood(Cuda device, const GaussianLogLikelihood<T>& a) {
  using namespace cuda;
  const GaussianRowGrid grid = gaussian_value_grid(a.data.models, a.data.samples, a.data.features);
  clear(a.work.tickets, grid.work().tickets, device);
  const GaussianRows<T> rows(a.data, a.value, a.distortion, a.work, grid);
  a.data.noise == Noise::kRow ? launch_rows<Noise::kRow, false>(device, rows, grid)
                              : launch_rows<Noise::kElement, false>(device, rows, grid);
}
LINEAVAE_ALL_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_log_likelihood, GaussianLogLikelihood)

template <class T>
void gaussian_log_likelihood_backward(Cuda device, const GaussianLogLikelihoodBackward<T>& a) {
  using namespace cuda;
  if (a.data.noise == Noise::kFeature) return launch_features(device, a.data, a.grad, a.gradients);
  a.data.noise == Noise::kRow ? launch_gradients<Noise::kRow>(device, a) : launch_gradients<Noise::kElement>(device, a);
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
  const GaussianRowGrid grid = gaussian_mean_grid(a.data.models, a.data.samples, a.data.features);
  const GaussianWorkSize of_rows = grid.work();
  clear(a.work.tickets, of_rows.tickets + a.data.models, device);
  GaussianRows<T> rows(a.data, a.value, a.distortion, a.work, grid);
  rows.mean = a.mean;
  rows.grad_x_hat = a.gradients.x_hat;
  rows.grad_log_sigma2 = a.gradients.log_sigma2;
  rows.of_models = {a.work.parts + of_rows.parts, a.work.tickets + of_rows.tickets};
  a.data.noise == Noise::kRow ? launch_rows<Noise::kRow, true>(device, rows, grid)
                              : launch_rows<Noise::kElement, true>(device, rows, grid);
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cuda, gaussian_log_likelihood_mean, GaussianLogLikelihoodMean)

}  // namespace lineavae
