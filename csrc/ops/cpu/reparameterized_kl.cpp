// Rows are taken in blocks, so that e^(t/4), the KL of each latent and the noise of a block stay in the cache while
// every loop over them is vectorised, however few latents there are. Rows longer than a block are cut at fixed columns.
// Rows are split over threads; each is summed in its own order, in the accumulation type, so their number changes no
// bit.
#include "ops/reparameterized_kl.h"

#include <algorithm>

#include "common/cpu.h"

namespace lineavae {
namespace {

constexpr int kBlock = 1024;  // elements
constexpr int kQuads = 16;    // made at once: what one vector of 32-bit words holds
constexpr int kNoise = (kBlock / 4 / kQuads + 2) * kQuads * 4;

// The noise at [begin, begin + count), from the returned place of `buffer` on.
template <class A>
LINEAVAE_INLINE const A* make_noise(PhiloxKey key, int64_t begin, int count, A (&buffer)[kNoise]) {
  const uint64_t first = static_cast<uint64_t>(begin) / 4;
  const int offset = static_cast<int>(begin % 4), quads = (offset + count + 3) / 4;
  for (int quad = 0; quad < quads; quad += kQuads) {
    alignas(64) uint32_t words[4][kQuads];
#pragma omp simd
    for (int i = 0; i < kQuads; ++i) {
      const uint64_t counter = first + quad + i;
      uint64_t word[4] = {counter, counter >> 32, 0, 0};
      philox_rounds(word, key);
      words[0][i] = static_cast<uint32_t>(word[0]);
      words[1][i] = static_cast<uint32_t>(word[1]);
      words[2][i] = static_cast<uint32_t>(word[2]);
      words[3][i] = static_cast<uint32_t>(word[3]);
    }
    A* out = buffer + 4 * quad;
#pragma omp simd
    for (int i = 0; i < kQuads; ++i) {
      const NormalPair<A> low = normal_pair<A>(words[0][i], words[1][i]);
      const NormalPair<A> high = normal_pair<A>(words[2][i], words[3][i]);
      out[4 * i] = low.first;
      out[4 * i + 1] = low.second;
      out[4 * i + 2] = high.first;
      out[4 * i + 3] = high.second;
    }
  }
  return buffer + offset;
}

// Some whole rows of one model, or a part of one row.
struct Block {
  int64_t model, row, column;  // where it begins
  int rows, columns;

  int size() const { return rows * columns; }
};

// Adds the blocks that rows [begin, end) of all models consist of.
template <class Work>
LINEAVAE_INLINE void add_blocks(Work& work, int64_t begin, int64_t end) {
  const int64_t latents = work.a.latents, rows_of_model = work.a.rows;
  const int64_t rows_at_once = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, latents));
  while (begin < end) {
    const int64_t model = begin / rows_of_model, row = begin % rows_of_model;
    const int64_t rows = std::min({rows_at_once, rows_of_model - row, end - begin});
    int64_t column = 0;
    do {
      const int64_t columns = latents > kBlock ? std::min<int64_t>(kBlock, latents - column) : latents;
      work.add(Block{model, row, column, static_cast<int>(rows), static_cast<int>(columns)});
      column += columns;
    } while (column < latents);
    begin += rows;
  }
}

template <class T>
struct Values {
  using A = accumulate_t<T>;
  explicit Values(const ReparameterizedKL<T>& arguments) : a(arguments) {}

  const ReparameterizedKL<T>& a;
  alignas(64) A rho[kBlock], kl[kBlock], noise[kNoise];

  // Where weighted, the weights stand where the KL is put.
  template <bool kWeighted>
  LINEAVAE_INLINE void add_elements(const T* mean, const T* logvar, int size) {
#pragma omp simd
    for (int i = 0; i < size; ++i) {
      const GaussianElement<A> element = gaussian_element(load(mean[i]), load(logvar[i]), kWeighted ? kl[i] : A(1));
      rho[i] = element.rho;
      kl[i] = element.kl;
    }
  }

  LINEAVAE_INLINE void add(const Block& block) {
    const int size = block.size();
    const int64_t index = block.row * a.latents + block.column, of_model = a.rows * a.latents;
    const T* mean = a.mean + block.model * of_model + index;
    const T* logvar = a.logvar + block.model * of_model + index;
    const A* weight = a.kl_weight.of(block.model, a.latents);
    if (weight == nullptr) {
      add_elements<false>(mean, logvar, size);
    } else {
      for (int row = 0; row < block.rows; ++row)
        std::copy_n(weight + block.column, block.columns, kl + row * block.columns);
      add_elements<true>(mean, logvar, size);
    }
    for (int64_t sample = 0; sample < a.samples; ++sample) {
      const A* epsilon = make_noise(key_of(a.seed[block.model]), sample * of_model + index, size, noise);
      A* z = a.z + (block.model * a.samples + sample) * of_model + index;
#pragma omp simd
      for (int i = 0; i < size; ++i) z[i] = gaussian_sample(load(mean[i]), rho[i], epsilon[i]);
    }
    for (int row = 0; row < block.rows; ++row) {
      const A* of_row = kl + row * block.columns;
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int k = 0; k < block.columns; ++k) sum += of_row[k];
      A& out = a.kl[block.model * a.rows + block.row + row];
      out = block.column == 0 ? sum : out + sum;
    }
  }
};

template <class T>
struct Gradients {
  using A = accumulate_t<T>;
  explicit Gradients(const ReparameterizedKLBackward<T>& arguments) : a(arguments) {}

  const ReparameterizedKLBackward<T>& a;
  alignas(64) A sum[kBlock], product[kBlock], of_kl[kBlock], noise[kNoise];  // Σ g, Σ g ε and h w

  LINEAVAE_INLINE void add(const Block& block) {
    const int size = block.size();
    const int64_t index = block.row * a.latents + block.column, of_model = a.rows * a.latents;
    for (int64_t sample = 0; sample < a.samples; ++sample) {
      const A* epsilon = make_noise(key_of(a.seed[block.model]), sample * of_model + index, size, noise);
      const A* grad_z = a.grad_z + (block.model * a.samples + sample) * of_model + index;
      if (sample == 0) {
#pragma omp simd
        for (int i = 0; i < size; ++i) {
          sum[i] = grad_z[i];
          product[i] = grad_z[i] * epsilon[i];
        }
      } else {
#pragma omp simd
        for (int i = 0; i < size; ++i) {
          sum[i] += grad_z[i];
          product[i] = multiply_add(grad_z[i], epsilon[i], product[i]);
        }
      }
    }
    const A* weight = a.kl_weight.of(block.model, a.latents);
    for (int row = 0; row < block.rows; ++row) {
      const A grad_kl = a.grad_kl[block.model * a.rows + block.row + row];
      A* of_row = of_kl + row * block.columns;
      if (weight == nullptr) {
        for (int k = 0; k < block.columns; ++k) of_row[k] = grad_kl;
      } else {
        for (int k = 0; k < block.columns; ++k) of_row[k] = grad_kl * weight[block.column + k];
      }
    }
    const T* mean = a.mean + block.model * of_model + index;
    const T* logvar = a.logvar + block.model * of_model + index;
    T* grad_mean = a.grad_mean + block.model * of_model + index;
    T* grad_logvar = a.grad_logvar + block.model * of_model + index;
#pragma omp simd
    for (int i = 0; i < size; ++i) {
      const GaussianGradients<A> gradients =
          gaussian_gradients(load(mean[i]), load(logvar[i]), sum[i], product[i], of_kl[i]);
      store(gradients.mean, grad_mean[i]);
      store(gradients.logvar, grad_logvar[i]);
    }
  }
};

}  // namespace

template <class T>
LINEAVAE_INLINE void reparameterized_kl_body(const ReparameterizedKL<T>& a, int64_t begin, int64_t end) {
  const WithoutDenormals guard;
  Values<T> work(a);
  add_blocks(work, begin, end);
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, reparameterized_kl, ReparameterizedKL, (a.models * a.rows),
                    (a.samples * a.latents))

template <class T>
LINEAVAE_INLINE void reparameterized_kl_backward_body(const ReparameterizedKLBackward<T>& a, int64_t begin,
                                                      int64_t end) {
  const WithoutDenormals guard;
  Gradients<T> work(a);
  add_blocks(work, begin, end);
}
LINEAVAE_CPU_KERNEL(LINEAVAE_ALL_FLOATING, reparameterized_kl_backward, ReparameterizedKLBackward, (a.models * a.rows),
                    (a.samples * a.latents))

}  // namespace lineavae
