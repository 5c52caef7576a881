// A block trains one model, all steps in one launch, if the block has room for it. A thread owns a tile of W and the
// same tile of Vᵀ, with its moments, in registers; what others read of them is in shared memory, and S beside it.
// Models smaller than the block's are padded with zeros, which stay zero.
#include "ops/linear_vae_ascent.h"

#include "common/approximate.cuh"
#include "common/cuda.cuh"

namespace lineavae::cuda {
namespace {

constexpr int kD = kBlockFeatures, kK = kBlockLatents, kColumns = 4;

// Of one matrix: as many rows as leave registers for its moments, kGroups apart, so that threads that read their own
// rows at once read rows that follow each other, which are in different banks.
template <class T>
constexpr int kRows = 16 / sizeof(T);
template <class T>
constexpr int kGroups = kD / kRows<T>;
template <class T>
constexpr int kAscentThreads = kD * kK / (kRows<T> * kColumns);
template <class T>
constexpr int kAscentWarps = kAscentThreads<T> / kWarp;

// Of a multiprocessor: as many as its registers hold.
template <class T>
constexpr int kAscentBlocks = sizeof(T) == 4 ? 4 : 2;
template <class T>
constexpr T kNone = std::numeric_limits<T>::quiet_NaN();

template <class T>
struct Shared {
  static constexpr int kStride = kK + 16 / sizeof(T);  // of matrices whose rows are read across threads
  T covariance[kD][kD];                                // S, columns in the order of `place`
  T weight[kD][kStride];                               // W
  T encoder[kD][kStride];                              // Vᵀ
  T product[kD][kStride];                              // C, then G
  T gram[kK][kK];                                      // M
  T aggregate[kK][kK];                                 // Q
  T d[kK];
  T partial_distortion[kAscentWarps<T>], partial_squares[kAscentWarps<T>];
};

template <class T>
using Tile = T[kRows<T>][kColumns];

// Neighbours in shared memory, 16 bytes at a time.
template <int kWidth, class T>
__device__ __forceinline__ void read(const T* from, T (&to)[kWidth]) {
  constexpr int kStep = kWidth < kFullWidth<T> ? kWidth : kFullWidth<T>;
#pragma unroll
  for (int i = 0; i < kWidth; i += kStep) {
    const auto v = load_vector<kStep>(from + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) to[i + j] = v.at[j];
  }
}
template <int kWidth, class T>
__device__ __forceinline__ void write(const T (&from)[kWidth], T* to) {
  constexpr int kStep = kWidth < kFullWidth<T> ? kWidth : kFullWidth<T>;
#pragma unroll
  for (int i = 0; i < kWidth; i += kStep) {
    Vector<T, kStep> v;
#pragma unroll
    for (int j = 0; j < kStep; ++j) v.at[j] = from[i + j];
    store_vector(to + i, v);
  }
}

// The column of S in shared memory that stands for a row of a tile: those of a thread follow each other.
template <class T>
__device__ __forceinline__ int place(int row) {
  return row % kGroups<T> * kRows<T> + row / kGroups<T>;
}

template <class T>
struct Owner {
  int group, column;  // the thread's rows are group, group + kGroups, ..., its columns column, column + 1, ...
  __device__ __forceinline__ int row(int i) const { return group + i * kGroups<T>; }

  __device__ __forceinline__ void load(Tile<T>& tile, const T* from, int64_t features, int64_t latents) const {
#pragma unroll
    for (int i = 0; i < kRows<T>; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const bool inside = row(i) < features && column + j < latents;
        tile[i][j] = inside ? from[row(i) * latents + column + j] : T(0);
      }
    }
  }
  __device__ __forceinline__ void save(const Tile<T>& tile, T* to, int64_t features, int64_t latents) const {
#pragma unroll
    for (int i = 0; i < kRows<T>; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (row(i) < features && column + j < latents) to[row(i) * latents + column + j] = tile[i][j];
      }
    }
  }
  __device__ __forceinline__ void share(const Tile<T>& tile, T (&matrix)[kD][Shared<T>::kStride]) const {
#pragma unroll
    for (int i = 0; i < kRows<T>; ++i) write(tile[i], &matrix[row(i)][column]);
  }

  // tile = S matrix
  __device__ __forceinline__ void times_covariance(const Shared<T>& shared, const T (&matrix)[kD][Shared<T>::kStride],
                                                   Tile<T>& tile) const {
    clear(tile);
#pragma unroll 4
    for (int p = 0; p < kD; ++p) {
      T left[kRows<T>], right[kColumns];
      read(&shared.covariance[p][group * kRows<T>], left);
      read(&matrix[p][column], right);
#pragma unroll
      for (int i = 0; i < kRows<T>; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) tile[i][j] = multiply_add(left[i], right[j], tile[i][j]);
      }
    }
  }

  // tile = matrix small
  __device__ __forceinline__ void times_small(const T (&matrix)[kD][Shared<T>::kStride], const T (&small)[kK][kK],
                                              Tile<T>& tile) const {
    constexpr int kWidth = kRows<T>;
    clear(tile);
#pragma unroll 1
    for (int p = 0; p < kK; p += kWidth) {
      T right[kWidth][kColumns];
#pragma unroll
      for (int q = 0; q < kWidth; ++q) read(&small[p + q][column], right[q]);
#pragma unroll
      for (int i = 0; i < kRows<T>; ++i) {
        T left[kWidth];
        read(&matrix[row(i)][p], left);
#pragma unroll
        for (int q = 0; q < kWidth; ++q) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) tile[i][j] = multiply_add(left[q], right[q][j], tile[i][j]);
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ void clear(Tile<T>& tile) {
#pragma unroll
    for (int i = 0; i < kRows<T>; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) tile[i][j] = 0;
    }
  }
};

// M by the first half of the threads and Q by the other.
template <class T>
__device__ __forceinline__ void gram_and_aggregate(Shared<T>& shared) {
  constexpr int kHalf = kAscentThreads<T> / 2, kTall = kK * kK / (kHalf * kColumns);
  const bool second = threadIdx.x >= kHalf;
  const int thread = threadIdx.x % kHalf, row = thread / (kK / kColumns) * kTall,
            column = thread % (kK / kColumns) * kColumns;
  const auto& left = second ? shared.encoder : shared.weight;
  const auto& right = second ? shared.product : shared.weight;
  T tile[kTall][kColumns] = {};
#pragma unroll 4
  for (int p = 0; p < kD; ++p) {
    T a[kTall], b[kColumns];
    read(&left[p][row], a);
    read(&right[p][column], b);
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) tile[i][j] = multiply_add(a[i], b[j], tile[i][j]);
    }
  }
  auto& out = second ? shared.aggregate : shared.gram;
#pragma unroll
  for (int i = 0; i < kTall; ++i) write(tile[i], &out[row + i][column]);
}

// m / (√v / √(1 - β₂ᵗ) + ε), in float to a few units in the last place.
__device__ __forceinline__ float adam_direction(float m, float v, float inverse_root) {
  const float root = v * approximate_rsqrt(fmaxf(v, 1.2e-38f));
  return m * approximate_reciprocal(multiply_add(root, inverse_root, static_cast<float>(kEpsilon)));
}
__device__ __forceinline__ double adam_direction(double m, double v, double inverse_root) {
  return m / (sqrt(v) * inverse_root + kEpsilon);
}

template <class T, bool kAdam>
struct Move {
  T step_size, inverse_root;
  __device__ __forceinline__ void operator()(T g, T& x, T& m, T& v) const {
    if constexpr (kAdam) {
      m += T(1 - kBeta1) * (g - m);
      v = T(kBeta2) * v + T(1 - kBeta2) * (g * g);
      x += step_size * adam_direction(m, v, inverse_root);
    } else {
      x += step_size * g;
    }
  }
};

// The sum over a block of what the warps have left here.
template <class T>
__device__ __forceinline__ T total(const T (&partial)[kAscentWarps<T>]) {
  T sum = 0;
#pragma unroll
  for (int warp = 0; warp < kAscentWarps<T>; ++warp) sum += partial[warp];
  return sum;
}
template <class T>
__device__ __forceinline__ void leave(T value, T (&partial)[kAscentWarps<T>]) {
  value = warp_sum(value);
  if (lane() == 0) partial[threadIdx.x / kWarp] = value;
}

// What a thread owns of the parameters or of a moment; log d only in the first kK threads, log σ² in all.
template <class T>
struct State {
  Tile<T> weight, encoder;
  T log_d, log_sigma2;

  __device__ __forceinline__ void load(const Owner<T>& owner, const T* from, int64_t features, int64_t latents) {
    owner.load(weight, from, features, latents);
    owner.load(encoder, from + features * latents, features, latents);
    log_d = threadIdx.x < latents ? from[2 * features * latents + threadIdx.x] : T(0);
    log_sigma2 = from[2 * features * latents + latents];
  }
  __device__ __forceinline__ void save(const Owner<T>& owner, T* to, int64_t features, int64_t latents) const {
    owner.save(weight, to, features, latents);
    owner.save(encoder, to + features * latents, features, latents);
    if (threadIdx.x < latents) to[2 * features * latents + threadIdx.x] = log_d;
    if (threadIdx.x == 0) to[2 * features * latents + latents] = log_sigma2;
  }
};

template <class T, bool kAdam>
__global__ void __launch_bounds__(kAscentThreads<T>, kAscentBlocks<T>) ascend_kernel(AscentArguments<T> a) {
  LINEAVAE_DYNAMIC_SHARED(Shared<T>, memory);
  Shared<T>& shared = *memory;
  const int64_t model = blockIdx.x, D = a.features, K = a.latents, at = model * num_parameters(D, K);
  const Owner<T> owner{static_cast<int>(threadIdx.x) / (kK / kColumns),
                       static_cast<int>(threadIdx.x) % (kK / kColumns) * kColumns};
  T variance = threadIdx.x == 0 ? static_cast<T>(a.omitted_variance) : T(0);  // this thread's share, with tr S
  for (int i = threadIdx.x; i < kD * kD; i += kAscentThreads<T>) {
    const int row = i / kD, column = i % kD;
    const T value = row < D && column < D ? a.covariance[row * D + column] : T(0);
    shared.covariance[row][place<T>(column)] = value;
    variance += row == column ? value : T(0);
  }
  State<T> x, m = {}, v = {};
  x.load(owner, a.start + at, D, K);
  if constexpr (kAdam) {
    m.load(owner, a.start_first + at, D, K);
    v.load(owner, a.start_second + at, D, K);
  }
  bool active = a.trains[model];
  int64_t taken = 0;
  T norm = kNone<T>;
#pragma unroll 1
  while (active && taken < a.steps) {
    const T precision = exponential(-x.log_sigma2), beta = a.beta[model * a.steps + taken];
    const double lr = a.lr[model * a.steps + taken];
    const BiasCorrection correction = a.corrections[taken];
    const Move<T, kAdam> move = {static_cast<T>(kAdam ? lr * correction.mean : lr), static_cast<T>(correction.root)};
    const T d = threadIdx.x < K ? exponential(x.log_d) : T(0);
    owner.share(x.weight, shared.weight);
    owner.share(x.encoder, shared.encoder);
    if (threadIdx.x < kK) shared.d[threadIdx.x] = d;
    __syncthreads();
    Tile<T> c;
    owner.times_covariance(shared, shared.encoder, c);
    owner.share(c, shared.product);
    __syncthreads();
    gram_and_aggregate(shared);
    __syncthreads();
    T distortion = variance, squares = 0, grad_log_d = 0;
    Tile<T> product;
    owner.times_small(shared.encoder, shared.gram, product);
#pragma unroll
    for (int i = 0; i < kRows<T>; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {  // G
        product[i][j] = precision * (x.weight[i][j] - product[i][j]) - beta * x.encoder[i][j];
      }
    }
    owner.share(product, shared.product);  // of C, nothing but the tiles is needed any more
    owner.times_small(shared.weight, shared.aggregate, product);
    T variances[kColumns];
    read(&shared.d[owner.column], variances);
#pragma unroll
    for (int i = 0; i < kRows<T>; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const T g = precision * (c[i][j] - product[i][j] - x.weight[i][j] * variances[j]);
        distortion -= 2 * x.weight[i][j] * c[i][j];
        squares += g * g;
        move(g, x.weight[i][j], m.weight[i][j], v.weight[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kK * kK / kAscentThreads<T>; ++i) {
      const int entry = threadIdx.x + i * kAscentThreads<T>;
      distortion += shared.gram[entry / kK][entry % kK] * shared.aggregate[entry / kK][entry % kK];
    }
    if (threadIdx.x < K) {
      const T gram = shared.gram[threadIdx.x][threadIdx.x];
      distortion += d * gram;
      grad_log_d = T(0.5) * (beta * (1 - d) - precision * d * gram);
      squares += grad_log_d * grad_log_d;
    }
    leave(distortion, shared.partial_distortion);
    __syncthreads();
    owner.times_covariance(shared, shared.product, product);
#pragma unroll
    for (int i = 0; i < kRows<T>; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        squares += product[i][j] * product[i][j];
        move(product[i][j], x.encoder[i][j], m.encoder[i][j], v.encoder[i][j]);
      }
    }
    if (threadIdx.x < K) move(grad_log_d, x.log_d, m.log_d, v.log_d);
    T grad_log_sigma2 = 0;
    if (a.learn_sigma2) {
      const T features = static_cast<T>(D + a.omitted_features);
      grad_log_sigma2 = T(0.5) * (precision * total<T>(shared.partial_distortion) - features);
      move(grad_log_sigma2, x.log_sigma2, m.log_sigma2, v.log_sigma2);
    }
    leave(squares, shared.partial_squares);
    __syncthreads();
    norm = square_root(total<T>(shared.partial_squares) + grad_log_sigma2 * grad_log_sigma2);
    ++taken;
    active = !(norm < a.tolerance);
  }
  x.save(owner, a.parameters + at, D, K);
  if constexpr (kAdam) {
    m.save(owner, a.first_moment + at, D, K);
    v.save(owner, a.second_moment + at, D, K);
  }
  if (threadIdx.x == 0) {
    a.active[model] = active;
    a.steps_taken[model] = taken;
    a.gradient_norm[model] = norm;
  }
}

// Of models larger than that, a block makes what the products of a step leave to do.
template <class T>
__global__ void __launch_bounds__(kThreads) pull_kernel(ProductStep<T> s) {
  LINEAVAE_SHARED(partial, T[kWarps]);
  const AscentArguments<T>& a = s.ascent;
  const int64_t model = blockIdx.x, D = a.features, K = a.latents;
  const T* x = a.parameters + model * num_parameters(D, K);
  const T *log_d = x + 2 * D * K, *C = s.covariance_encoder + model * D * K;
  T *gram = s.gram + model * K * K, *aggregate = s.aggregate + model * K * K;
  const T sigma2 = exponential(log_d[K]), beta = a.beta[model * a.steps + s.step];
  T sum = threadIdx.x == 0 ? static_cast<T>(a.omitted_variance) : T(0);
  for (int64_t i = threadIdx.x; i < D; i += kThreads) sum += a.covariance[i * D + i];
  for (int64_t i = threadIdx.x; i < D * K; i += kThreads) sum -= 2 * x[i] * C[i];
  for (int64_t i = threadIdx.x; i < K * K; i += kThreads) {
    sum += gram[i] * aggregate[i];
    if (i % (K + 1) == 0) {
      const int64_t k = i / (K + 1);
      const T d = exponential(log_d[k]), shrinkage = d * gram[i];
      sum += shrinkage;
      s.grad_log_d[model * K + k] = T(0.5) * (beta * (1 - d) - shrinkage / sigma2);
      gram[i] += beta * sigma2;
      aggregate[i] += d;
    }
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) s.distortion[model] = sum;
}

template <class T, bool kAdam>
__global__ void __launch_bounds__(kThreads) move_kernel(ProductStep<T> s) {
  LINEAVAE_SHARED(partial, T[kWarps]);
  const AscentArguments<T>& a = s.ascent;
  const int64_t model = blockIdx.x, D = a.features, K = a.latents, size = D * K;
  if (!a.active[model]) return;  // the whole block
  const int64_t at = model * num_parameters(D, K), log_sigma2 = 2 * size + K;
  const T precision = exponential(-a.parameters[at + log_sigma2]);
  const double lr = a.lr[model * a.steps + s.step];
  const BiasCorrection correction = a.corrections[s.step];
  const Move<T, kAdam> step = {static_cast<T>(kAdam ? lr * correction.mean : lr), static_cast<T>(correction.root)};
  T none = 0;  // what plain ascent has for moments
  const auto move_by = [&](T g, int64_t i) {
    step(g, a.parameters[at + i], kAdam ? a.first_moment[at + i] : none, kAdam ? a.second_moment[at + i] : none);
    return g * g;
  };
  T squares = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const int64_t entry = model * size + i;
    squares += move_by(precision * (s.covariance_encoder[entry] - s.weight_pull[entry]), i);
    squares += move_by(precision * s.encoder_rise[entry], size + i);
  }
  for (int64_t k = threadIdx.x; k < K; k += kThreads) squares += move_by(s.grad_log_d[model * K + k], 2 * size + k);
  squares = block_sum(squares, partial);  // and all have read σ²
  if (threadIdx.x == 0) {
    if (a.learn_sigma2) {
      const T features = static_cast<T>(D + a.omitted_features);
      squares += move_by(T(0.5) * (precision * s.distortion[model] - features), log_sigma2);
    }
    const T norm = square_root(squares);
    a.gradient_norm[model] = norm;
    a.active[model] = !(norm < a.tolerance);
    ++a.steps_taken[model];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) bias_corrections_kernel(BiasCorrections<T> a) {
  const int64_t i = thread_index();
  if (i < a.steps) a.corrections[i] = bias_correction(a.first_step + i);
}

}  // namespace
}  // namespace lineavae::cuda

namespace lineavae {

LINEAVAE_CUDA_KERNEL(LINEAVAE_FLOATING, bias_corrections, BiasCorrections, blocks_of_threads(a.steps))

template <class T>
void ascend(Cuda device, const AscentArguments<T>& a) {
  using namespace cuda;
  launch(a.adam ? &ascend_kernel<T, true> : &ascend_kernel<T, false>, blocks(a.models), kAscentThreads<T>,
         sizeof(Shared<T>), device, a);
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cuda, ascend, AscentArguments)

template <class T>
void pull(Cuda device, const ProductStep<T>& s) {
  using namespace cuda;
  launch(&pull_kernel<T>, blocks(s.ascent.models), kThreads, device, s);
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cuda, pull, ProductStep)

template <class T>
void move(Cuda device, const ProductStep<T>& s) {
  using namespace cuda;
  launch(s.ascent.adam ? &move_kernel<T, true> : &move_kernel<T, false>, blocks(s.ascent.models), kThreads, device, s);
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cuda, move, ProductStep)

}  // namespace lineavae
