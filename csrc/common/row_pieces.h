// On a GPU a row that is longer than a block's share is summed in pieces, whose sums a second launch adds.
#pragma once

#include <cstdint>

namespace lineavae {

constexpr int64_t kLongestWholeRow = 4096;
constexpr int64_t kShortestPiece = kLongestWholeRow / 4;

// The most that a row may be in.
inline int64_t most_pieces(int64_t columns) {
  return columns <= kLongestWholeRow ? 1 : (columns + kShortestPiece - 1) / kShortestPiece;
}

}  // namespace lineavae
