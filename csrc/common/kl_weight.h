// Weights of the latents in a sum of their KL.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/portable.h"

namespace lineavae {

template <class T>
struct KLWeight {
  const accumulate_t<T>* weight;  // (groups, latents), or null: all are 1
  bool shared;                    // one group stands for all

  // Those of a group, or null.
  LINEAVAE_HOST_DEVICE const accumulate_t<T>* of(int64_t group, int64_t latents) const {
    return weight == nullptr || shared ? weight : weight + group * latents;
  }
};

// w x, and 0 for w = 0 whatever x is: a latent that does not count, a gradient that nobody asked for.
template <class A>
LINEAVAE_HOST_DEVICE A weighted(A w, A x) {
  return w * (w == A(0) ? A(0) : x);
}

}  // namespace lineavae
