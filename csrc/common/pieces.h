// On a GPU a row is summed in pieces where rows are too few for all multiprocessors, or too long for one block; then
// the sums of a row are added in a second launch, in order. Two kinds of kernels sum rows so: those that keep something
// of a row in registers give a warp to each piece, and those that do not give a block to a tile (common/row_tiles.cuh).
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/device.h"

namespace lineavae {

struct Pieces {
  int64_t count;   // of each row
  int32_t length;  // of all but a row's last: at most a thousandth of all elements, so that 32 bits are enough
};

// Of a warp each.
inline Pieces pieces_of(Cpu, int64_t, int64_t) { return {1, 0}; }

inline Pieces pieces_of(Cuda, int64_t rows, int64_t features) {
  constexpr int64_t kManyWarps = 1024, kLeast = 1024, kWhole = 128;  // a float vector for each lane
  const int64_t share = std::max(kLeast, (rows * features + kManyWarps - 1) / kManyWarps);
  const int64_t length = (share + kWhole - 1) / kWhole * kWhole;
  return {std::max<int64_t>(1, (features + length - 1) / length), static_cast<int32_t>(length)};
}

// Of rows in tiles: the most that one may be in.
constexpr int64_t kLongestWholeRow = 4096;
constexpr int64_t kShortestPiece = kLongestWholeRow / 4;
inline int64_t most_pieces(Cpu, int64_t) { return 1; }
inline int64_t most_pieces(Cuda, int64_t columns) {
  return columns <= kLongestWholeRow ? 1 : (columns + kShortestPiece - 1) / kShortestPiece;
}

}  // namespace lineavae
