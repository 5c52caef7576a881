// On a GPU a warp sums a row or, where rows are too few for all multiprocessors, a piece of one; then the sums of a row
// are added in a second launch, in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/device.h"

namespace lineavae {

struct Pieces {
  int64_t count;   // of each row
  int32_t length;  // of all but a row's last: at most a thousandth of all elements, so that 32 bits are enough
};

inline Pieces pieces_of(Cpu, int64_t, int64_t) { return {1, 0}; }

inline Pieces pieces_of(Cuda, int64_t rows, int64_t features) {
  constexpr int64_t kManyWarps = 1024, kLeast = 1024, kWhole = 128;  // a float vector for each lane
  const int64_t share = std::max(kLeast, (rows * features + kManyWarps - 1) / kManyWarps);
  const int64_t length = (share + kWhole - 1) / kWhole * kWhole;
  return {std::max<int64_t>(1, (features + length - 1) / length), static_cast<int32_t>(length)};
}

}  // namespace lineavae
