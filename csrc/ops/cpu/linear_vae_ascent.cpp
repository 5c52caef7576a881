// A model's whole trajectory runs on one thread, in a work space that stays in the cache: of a model with D = 64 and
// K = 16 it is 36 KB, and S as much again. Models are split over threads; where there are fewer models than threads,
// each phase of a step is, by rows of 16, whose sums are added in one order.
//
// Matrices lie there in panels as wide as a vector, (panels, rows, lanes), padded with zeros, which stay zero. So a
// product loads vectors from one stream and broadcasts from another, both contiguous. Its tile, the accumulators that
// the registers hold, is tall with one panel and broad with two.
#include "ops/linear_vae_ascent.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "common/cpu.h"

#define LINEAVAE_UNROLL _Pragma("GCC unroll 16")

namespace lineavae {
namespace {

constexpr int64_t kRows = 16;  // of all matrices: a multiple

constexpr int64_t padded(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// The instruction set's vectors, of kBytes each, and as many accumulators as half of its registers hold.
template <class T, int kBytes>
struct Vectors {
  typedef T Vector __attribute__((vector_size(kBytes), may_alias));
  static constexpr int kLanes = kBytes / sizeof(T);
  static constexpr int kTall = std::min(kBytes == 64 ? 16 : 8, kLanes), kBroad = std::min(kBytes == 64 ? 8 : 4, kLanes);
};

// out (panels, height, lanes) = A B, where A(r, p) = a[r * kRow + p * kColumn], in blocks of `block` columns that are
// `next_block` apart, and B's rows are vectors, one after the other, of panels that are `next_panel` apart.
template <class T, int kBytes, int kHeight, int kPanels, int kRow, int kColumn>
LINEAVAE_INLINE void multiply_tile(const T* a, int64_t block, int64_t next_block, const T* b, int64_t next_panel,
                                   int64_t columns, T* out) {
  using Vector = typename Vectors<T, kBytes>::Vector;
  constexpr int kLanes = Vectors<T, kBytes>::kLanes;
  Vector sums[kHeight][kPanels];
  LINEAVAE_UNROLL
  for (int r = 0; r < kHeight; ++r) {
    LINEAVAE_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) sums[r][panel] = Vector{};
  }
  for (int64_t begin = 0; begin < columns; begin += block, a += next_block) {
    const int64_t end = std::min(block, columns - begin);
    for (int64_t p = 0; p < end; ++p, b += kLanes) {
      Vector row[kPanels];
      LINEAVAE_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) {
        row[panel] = *reinterpret_cast<const Vector*>(b + panel * next_panel);
      }
      LINEAVAE_UNROLL
      for (int r = 0; r < kHeight; ++r) {
        const T factor = a[r * kRow + p * kColumn];
        LINEAVAE_UNROLL
        for (int panel = 0; panel < kPanels; ++panel) sums[r][panel] += factor * row[panel];
      }
    }
  }
  LINEAVAE_UNROLL
  for (int r = 0; r < kHeight; ++r) {
    LINEAVAE_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) {
      *reinterpret_cast<Vector*>(out + (panel * kHeight + r) * kLanes) = sums[r][panel];
    }
  }
}

// S in blocks of kRows rows, (blocks, D, kRows), the last one padded with zeros.
template <class T>
std::vector<T> pack_covariance(const T* covariance, int64_t features) {
  std::vector<T> packed(padded(features, kRows) * features);
  for (int64_t i = 0; i < features; ++i) {
    for (int64_t j = 0; j < features; ++j) {
      packed[(i / kRows * features + j) * kRows + i % kRows] = covariance[i * features + j];
    }
  }
  return packed;
}

// A matrix in panels.
template <class T, int kBytes>
struct Panels {
  static constexpr int64_t kLanes = Vectors<T, kBytes>::kLanes;

  LINEAVAE_INLINE T* at(int64_t panel, int64_t row) const { return data + (panel * rows + row) * kLanes; }
  LINEAVAE_INLINE T& operator()(int64_t row, int64_t column) const { return at(column / kLanes, row)[column % kLanes]; }
  LINEAVAE_INLINE int64_t size() const { return count * rows * kLanes; }

  T* data;
  int64_t count, rows;
};

// A B tile by tile, for A of `height` rows, a multiple of a tile's; finish(panel, row, height, tile) takes each.
template <int kRow, int kColumn, class T, int kBytes, class Finish>
LINEAVAE_INLINE void multiply(const T* a, int64_t height, int64_t block, int64_t next_block, const Panels<T, kBytes>& b,
                              int64_t columns, const Finish& finish) {
  using V = Vectors<T, kBytes>;
  alignas(64) T tile[2 * V::kTall * V::kLanes];
  const int64_t next_panel = b.rows * V::kLanes;
  int64_t panel = 0;
  for (; panel + 2 <= b.count; panel += 2) {
    for (int64_t row = 0; row < height; row += V::kBroad) {
      multiply_tile<T, kBytes, V::kBroad, 2, kRow, kColumn>(a + row * kRow, block, next_block, b.at(panel, 0),
                                                            next_panel, columns, tile);
      finish(panel, row, V::kBroad, tile);
      finish(panel + 1, row, V::kBroad, tile + V::kBroad * V::kLanes);
    }
  }
  if (panel < b.count) {
    for (int64_t row = 0; row < height; row += V::kTall) {
      multiply_tile<T, kBytes, V::kTall, 1, kRow, kColumn>(a + row * kRow, block, next_block, b.at(panel, 0),
                                                           next_panel, columns, tile);
      finish(panel, row, V::kTall, tile);
    }
  }
}

// How a step moves a parameter by its gradient.
template <class T>
struct Move {
  bool adam;
  T step_size;     // lr, of Adam lr / (1 - β₁ᵗ)
  T inverse_root;  // of Adam: 1 / √(1 - β₂ᵗ)

  // -> Σ g²
  LINEAVAE_INLINE T operator()(int64_t size, const T* g, T* x, T* m, T* v) const {
    T squares = 0;
    if (adam) {
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < size; ++i) {
        m[i] += T(1 - kBeta1) * (g[i] - m[i]);
        v[i] = T(kBeta2) * v[i] + T(1 - kBeta2) * (g[i] * g[i]);
        x[i] += step_size * m[i] / (square_root(v[i]) * inverse_root + T(kEpsilon));
        squares += g[i] * g[i];
      }
    } else {
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < size; ++i) {
        x[i] += step_size * g[i];
        squares += g[i] * g[i];
      }
    }
    return squares;
  }
};

// What a tile of a product becomes. `first` is the row of the result where the product's first row goes.
template <class T, int kBytes>
struct Store {
  Panels<T, kBytes> out;
  int64_t first;
  LINEAVAE_INLINE void operator()(int64_t panel, int64_t row, int64_t height, const T* tile) const {
    std::memcpy(out.at(panel, first + row), tile, sizeof(T) * height * out.kLanes);
  }
};

template <class T, int kBytes>
struct SubtractFromScaled {  // out = scale in - tile
  T scale;
  Panels<T, kBytes> in, out;
  int64_t first;
  LINEAVAE_INLINE void operator()(int64_t panel, int64_t row, int64_t height, const T* tile) const {
    const T* x = in.at(panel, first + row);
    T* y = out.at(panel, first + row);
#pragma omp simd
    for (int64_t i = 0; i < height * in.kLanes; ++i) y[i] = scale * x[i] - tile[i];
  }
};

template <class T, int kBytes>
struct ScaleDifference {  // inout = scale (inout - tile)
  T scale;
  Panels<T, kBytes> inout;
  int64_t first;
  LINEAVAE_INLINE void operator()(int64_t panel, int64_t row, int64_t height, const T* tile) const {
    T* x = inout.at(panel, first + row);
#pragma omp simd
    for (int64_t i = 0; i < height * inout.kLanes; ++i) x[i] = scale * (x[i] - tile[i]);
  }
};

template <class T, int kBytes>
struct MoveByTile {  // whose gradient the tile is
  Move<T> move;
  Panels<T, kBytes> x, m, v;
  int64_t first;
  double* squares;
  LINEAVAE_INLINE void operator()(int64_t panel, int64_t row, int64_t height, const T* tile) const {
    const int64_t at = first + row;
    *squares += move(height * x.kLanes, tile, x.at(panel, at), m.at(panel, at), v.at(panel, at));
  }
};

// Parameters, or their moments.
template <class T, int kBytes>
struct State {
  Panels<T, kBytes> weight, encoder;  // W, Vᵀ
  T *log_d, *log_sigma2;

  LINEAVAE_INLINE void load(const T* from, int64_t features, int64_t latents) const {
    for (const Panels<T, kBytes>* matrix : {&weight, &encoder}) {
      std::fill_n(matrix->data, matrix->size(), T(0));
      for (int64_t i = 0; i < features; ++i) {
        for (int64_t k = 0; k < latents; ++k) (*matrix)(i, k) = *from++;
      }
    }
    std::copy_n(from, latents, log_d);
    *log_sigma2 = from[latents];
  }
  LINEAVAE_INLINE void save(T* to, int64_t features, int64_t latents) const {
    for (const Panels<T, kBytes>* matrix : {&weight, &encoder}) {
      for (int64_t i = 0; i < features; ++i) {
        for (int64_t k = 0; k < latents; ++k) *to++ = (*matrix)(i, k);
      }
    }
    std::copy_n(log_d, latents, to);
    to[latents] = *log_sigma2;
  }
};

// Of a step. Those of a kind do not depend on each other, and each depends on all before.
enum class Phase { kEncode, kMultiply, kCombine, kMoveWeight, kMoveEncoder, kMoveRest };

template <class T, int kBytes>
class Trainer {
 public:
  // Does `work` of a phase on the calling thread, with the instruction set's code.
  using Work = void (*)(Trainer&, Phase, int64_t, int64_t);

  Trainer(const AscentArguments<T>& a, const T* covariance, Work work, bool split)
      : a_(a),
        work_(work),
        split_(split),
        covariance_(covariance),
        rows_(padded(a.features, kRows)),
        x_(state()),
        m_(state()),
        v_(state()),
        covariance_encoder_(panels(rows_)),
        shortfall_(panels(rows_)),
        gram_(panels(padded(a.latents, kLanes))),
        aggregate_(panels(padded(a.latents, kLanes))),
        d_(allocate(a.latents)),
        grad_log_d_(allocate(a.latents)),
        squares_(2 * blocks()) {
    total_variance_ = a.omitted_variance;
    for (int64_t i = 0; i < a.features; ++i) total_variance_ += a.covariance[i * a.features + i];
  }

  void train(int64_t model) {
    const int64_t D = a_.features, K = a_.latents, at = model * num_parameters(D, K);
    x_.load(a_.start + at, D, K);
    if (a_.adam) {
      m_.load(a_.start_first + at, D, K);
      v_.load(a_.start_second + at, D, K);
    }
    bool active = a_.trains[model];
    int64_t taken = 0;
    double norm = std::numeric_limits<double>::quiet_NaN();
    while (active && taken < a_.steps) {
      const double lr = a_.lr[model * a_.steps + taken];
      const BiasCorrection& correction = a_.corrections[taken];
      move_ = a_.adam ? Move<T>{true, T(lr * correction.mean), T(correction.root)} : Move<T>{false, T(lr), T(0)};
      beta_ = a_.beta[model * a_.steps + taken];
      run(Phase::kEncode, blocks(), kRows * D * K);
      run(Phase::kMultiply, x_.weight.count, 2 * kLanes * D * K);
      run(Phase::kCombine);
      run(Phase::kMoveWeight, blocks(), 2 * kRows * K * K);
      run(Phase::kMoveEncoder, blocks(), kRows * D * K);
      run(Phase::kMoveRest);
      norm = std::sqrt(total_squares_);
      ++taken;
      active = !(norm < a_.tolerance);
    }
    x_.save(a_.parameters + at, D, K);
    if (a_.adam) {
      m_.save(a_.first_moment + at, D, K);
      v_.save(a_.second_moment + at, D, K);
    }
    a_.active[model] = active;
    a_.steps_taken[model] = taken;
    a_.gradient_norm[model] = static_cast<T>(norm);
  }

  LINEAVAE_INLINE void work(Phase phase, int64_t begin, int64_t end) {
    const WithoutDenormals guard;
    switch (phase) {
      case Phase::kEncode:
        for (int64_t i = begin; i < end; ++i) {
          multiply_by_covariance(i * kRows, x_.encoder, Store<T, kBytes>{covariance_encoder_, i * kRows});
        }
        break;
      case Phase::kMultiply:
        multiply_panels(begin, end);
        break;
      case Phase::kCombine:
        combine();
        break;
      case Phase::kMoveWeight:
        for (int64_t i = begin; i < end; ++i) move_weight(i);
        break;
      case Phase::kMoveEncoder:
        for (int64_t i = begin; i < end; ++i) move_encoder(i);
        break;
      case Phase::kMoveRest:
        move_rest();
        break;
    }
  }

 private:
  static constexpr int64_t kLanes = Vectors<T, kBytes>::kLanes;
  using Matrix = Panels<T, kBytes>;

  int64_t blocks() const { return rows_ / kRows; }

  // One phase: blocks of rows, or panels, [0, count), behind each of which there are so many multiplications.
  void run(Phase phase, int64_t count = 1, int64_t cost = 0) {
    if (split_ && count > 1) {
      constexpr int64_t kPerElement = 32;  // as many take the time of an element of other kernels
      parallel_for(count, cost / kPerElement, [&](int64_t begin, int64_t end) { work_(*this, phase, begin, end); });
    } else {
      work_(*this, phase, 0, count);
    }
  }

  LINEAVAE_INLINE void multiply_panels(int64_t begin, int64_t end) {
    const int64_t D = a_.features;
    const Matrix &W = x_.weight, &V = x_.encoder, &C = covariance_encoder_;
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t row = panel * kLanes;
      multiply<1, kLanes>(W.at(panel, 0), kLanes, D, 0, W, D, Store<T, kBytes>{gram_, row});
      multiply<1, kLanes>(V.at(panel, 0), kLanes, D, 0, C, D, Store<T, kBytes>{aggregate_, row});
    }
  }

  // From M and Q to their part of the gradients, R and Q + diag d.
  LINEAVAE_INLINE void combine() {
    const int64_t K = a_.latents;
    const T beta = beta_, precision = precision_ = exponential(-*x_.log_sigma2);
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) d_[k] = exponential(x_.log_d[k]);
    grad_log_sigma2_ =
        a_.learn_sigma2 ? T(0.5) * (precision * distortion() - T(a_.features + a_.omitted_features)) : T(0);
    for (int64_t k = 0; k < K; ++k) {
      grad_log_d_[k] = T(0.5) * (beta * (1 - d_[k]) - precision * d_[k] * gram_(k, k));
      aggregate_(k, k) += d_[k];
    }
#pragma omp simd
    for (int64_t i = 0; i < gram_.size(); ++i) gram_.data[i] *= precision;
    for (int64_t k = 0; k < K; ++k) gram_(k, k) += beta;  // R
  }

  LINEAVAE_INLINE void move_weight(int64_t block) {
    const int64_t row = block * kRows;
    const Matrix &W = x_.weight, &V = x_.encoder, &C = covariance_encoder_, &G = shortfall_;
    multiply_row_by_row(row, V, gram_, SubtractFromScaled<T, kBytes>{precision_, W, G, row});
    multiply_row_by_row(row, W, aggregate_, ScaleDifference<T, kBytes>{precision_, C, row});
    const Move<T> move = move_;
    double& squares = squares_[block] = 0;
    for (int64_t panel = 0; panel < W.count; ++panel) {
      squares +=
          move(kRows * kLanes, C.at(panel, row), W.at(panel, row), m_.weight.at(panel, row), v_.weight.at(panel, row));
    }
  }

  LINEAVAE_INLINE void move_encoder(int64_t block) {
    const int64_t row = block * kRows;
    double& squares = squares_[blocks() + block] = 0;
    multiply_by_covariance(row, shortfall_,
                           MoveByTile<T, kBytes>{move_, x_.encoder, m_.encoder, v_.encoder, row, &squares});
  }

  LINEAVAE_INLINE void move_rest() {
    total_squares_ = move_(a_.latents, grad_log_d_, x_.log_d, m_.log_d, v_.log_d);
    if (a_.learn_sigma2) total_squares_ += move_(1, &grad_log_sigma2_, x_.log_sigma2, m_.log_sigma2, v_.log_sigma2);
    for (const double squares : squares_) total_squares_ += squares;
  }

  // kRows rows of S times a matrix
  template <class Finish>
  LINEAVAE_INLINE void multiply_by_covariance(int64_t row, const Matrix& matrix, const Finish& finish) const {
    const int64_t D = a_.features;
    multiply<1, kRows>(covariance_ + row * D, kRows, D, 0, matrix, D, finish);
  }

  // kRows rows of a matrix times another one, (K, K)
  template <class Finish>
  LINEAVAE_INLINE void multiply_row_by_row(int64_t row, const Matrix& left, const Matrix& right,
                                           const Finish& finish) const {
    multiply<kLanes, 1>(left.at(0, row), kRows, kLanes, rows_ * kLanes, right, a_.latents, finish);
  }

  LINEAVAE_INLINE T distortion() const {
    const Matrix &W = x_.weight, &C = covariance_encoder_;
    double sum = total_variance_;
    for (int64_t i = 0; i < W.size(); i += kRows * kLanes) {
      sum -= 2 * static_cast<double>(dot(W.data + i, C.data + i, kRows * kLanes));
    }
    const int64_t panel = gram_.rows * kLanes;
    for (int64_t i = 0; i < gram_.size(); i += panel) sum += dot(gram_.data + i, aggregate_.data + i, panel);
    for (int64_t k = 0; k < a_.latents; ++k) sum += d_[k] * gram_(k, k);
    return static_cast<T>(sum);
  }

  T* allocate(int64_t size) {
    const size_t bytes = padded(std::max<int64_t>(size, 1) * sizeof(T), 64);
    memory_.emplace_back(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!memory_.back()) throw std::bad_alloc();
    std::memset(memory_.back().get(), 0, bytes);
    return memory_.back().get();
  }
  Matrix panels(int64_t rows) {
    const int64_t count = padded(a_.latents, kLanes) / kLanes;
    return {allocate(count * rows * kLanes), count, rows};
  }
  State<T, kBytes> state() { return {panels(rows_), panels(rows_), allocate(a_.latents), allocate(1)}; }

  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };

  const AscentArguments<T>& a_;
  Work work_;
  bool split_;           // the phases, over threads
  const T* covariance_;  // packed
  int64_t rows_;
  std::vector<std::unique_ptr<T, Free>> memory_;
  State<T, kBytes> x_, m_, v_;
  Matrix covariance_encoder_, shortfall_;  // C, of which dW is made, and G
  Matrix gram_, aggregate_;                // M, of which R is made, and Q
  T *d_, *grad_log_d_;
  double total_variance_;  // tr S, and what is omitted
  Move<T> move_{};         // of this step, as is all below
  T beta_ = 0, precision_ = 0, grad_log_sigma2_ = 0;
  std::vector<double> squares_;  // Σ g² of the blocks of W, then of Vᵀ
  double total_squares_ = 0;     // ‖g‖²
};

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// One for each instruction set, with vectors of its width: no clones, then.
template <class T>
void work_plainly(Trainer<T, kVectorBytes>& trainer, Phase phase, int64_t begin, int64_t end) {
  trainer.work(phase, begin, end);
}
#ifdef LINEAVAE_HAS_CLONES
template <class T>
__attribute__((target("arch=x86-64-v3"))) void work_with_avx2(Trainer<T, 32>& trainer, Phase phase, int64_t begin,
                                                              int64_t end) {
  trainer.work(phase, begin, end);
}
template <class T>
__attribute__((target("arch=x86-64-v4"))) void work_with_avx512(Trainer<T, 64>& trainer, Phase phase, int64_t begin,
                                                                int64_t end) {
  trainer.work(phase, begin, end);
}
#endif

template <class T, int kBytes>
void train_models(const AscentArguments<T>& a, void (*work)(Trainer<T, kBytes>&, Phase, int64_t, int64_t)) {
  const std::vector<T> covariance = pack_covariance(a.covariance, a.features);
  const auto train = [&](int64_t begin, int64_t end, bool split) {
    Trainer<T, kBytes> trainer(a, covariance.data(), work, split);
    for (int64_t model = begin; model < end; ++model) trainer.train(model);
  };
  if (a.models < torch::stable::get_num_threads()) {
    train(0, a.models, true);
  } else {
    parallel_for(a.models, a.steps * a.features * num_parameters(a.features, a.latents),
                 [&](int64_t begin, int64_t end) { train(begin, end, false); });
  }
}

}  // namespace

template <class T>
void bias_corrections(Cpu, const BiasCorrections<T>& a) {
  for (int64_t i = 0; i < a.steps; ++i) a.corrections[i] = bias_correction(a.first_step + i);
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cpu, bias_corrections, BiasCorrections)

template <class T>
void ascend(Cpu, const AscentArguments<T>& a) {
#ifdef LINEAVAE_HAS_CLONES
  if (__builtin_cpu_supports("x86-64-v4")) return train_models<T, 64>(a, &work_with_avx512<T>);
  if (__builtin_cpu_supports("x86-64-v3")) return train_models<T, 32>(a, &work_with_avx2<T>);
#endif
  train_models<T, kVectorBytes>(a, &work_plainly<T>);
}
LINEAVAE_FLOATING(LINEAVAE_INSTANTIATE, Cpu, ascend, AscentArguments)

}  // namespace lineavae
