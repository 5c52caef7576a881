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

}  // namespace lineavae
