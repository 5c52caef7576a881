// How blocks share the rows of matrices, which are read as vectors. A block takes a tile: some whole rows, together so
// many vectors that few lanes are idle, or a piece of a row that is longer than a tile. Each thread takes every 256th
// vector. A row's sum is made of a number for each vector; its order depends on the row's length and pieces, not on
// tiles.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cuda.cuh"

namespace lineavae::cuda {

struct Tile {
  int64_t row, column;  // where it begins; columns are vectors
  int piece;            // of that row
  int rows, length;     // `length` vectors of each row

  __device__ __forceinline__ int vectors() const { return rows * length; }
};

template <int kWidth>
class RowTiles {
 public:
  static constexpr int kMost = static_cast<int>(kLongestWholeRow) / kWidth;  // vectors in a tile
  static constexpr int kSteps = kMost / kThreads;                            // vectors of a thread

  RowTiles(int64_t matrices, int64_t rows, int64_t columns) {
    // two blocks for each multiprocessor: where there is little, tiles are smaller rather than fewer
    constexpr int64_t kBlocks = 264, kLeast = kShortestPiece / kWidth;
    const int64_t length = (columns + kWidth - 1) / kWidth, share = rows * length / kBlocks;
    if (length <= kMost) {
      length_ = static_cast<int>(length);
      const int64_t divisor = std::max(1, length_), most = std::clamp<int64_t>(rows, 1, kMost / divisor);
      rows_ = static_cast<int>(std::clamp<int64_t>(matrices * rows * length / kBlocks / divisor, 1, most));
    } else {
      length_ = static_cast<int>(std::clamp<int64_t>(share, kLeast, kMost)) / kThreads * kThreads;
    }
    const int64_t tiles = (rows + rows_ - 1) / rows_, pieces = length <= kMost ? 1 : (length + length_ - 1) / length_;
    grid_ = blocks(matrices * tiles * pieces);
    last_rows_ = static_cast<int>(rows - (tiles - 1) * rows_);
    last_length_ = static_cast<int>(length - (pieces - 1) * length_);
    row_ = Divisor(std::max(1, length_));
    pieces_ = Divisor(pieces);
    tiles_ = Divisor(std::max<int64_t>(1, tiles * pieces));
    while (log2_lanes_ < 5 && 8 << log2_lanes_ <= length_) ++log2_lanes_;  // so that each adds 4 numbers or more
  }

  // A block for each tile, without idle warps.
  dim3 grid() const { return grid_; }
  dim3 threads() const { return dim3((std::clamp(rows_ * length_, 1, kThreads) + kWarp - 1) / kWarp * kWarp); }
  LINEAVAE_HOST_DEVICE uint32_t pieces() const { return pieces_.divisor(); }

  // The matrix, and the tile of it, that this block has.
  __device__ __forceinline__ uint32_t matrix() const { return tiles_.quotient(blockIdx.x); }
  __device__ __forceinline__ Tile tile(uint32_t matrix) const {
    const uint32_t index = blockIdx.x - matrix * tiles_.divisor(), of_rows = pieces_.quotient(index);
    const uint32_t piece = index - of_rows * pieces();
    return {static_cast<int64_t>(uint64_t{of_rows} * static_cast<uint32_t>(rows_)),
            static_cast<int64_t>(uint64_t{piece} * static_cast<uint32_t>(length_)), static_cast<int>(piece),
            index + pieces() < tiles_.divisor() ? rows_ : last_rows_, piece + 1 < pieces() ? length_ : last_length_};
  }

  // Of a vector of a tile: which of the tile's rows it is in, and where in that row.
  __device__ __forceinline__ int row_of(int vector) const { return static_cast<int>(row_.quotient(vector)); }
  __device__ __forceinline__ int64_t column_of(const Tile& tile, int vector, int row) const {
    return tile.column + (vector - row * length_);
  }

  // Adds the numbers of a tile's vectors, row by row: a group of lanes in a warp for each row.
  template <class A>
  __device__ __forceinline__ void store_sums(const Tile& tile, const A* numbers, A* sums) const {
    const int lanes = 1 << log2_lanes_, groups = kWarp >> log2_lanes_, of_group = lane() & (lanes - 1);
    A* const out = sums + tile.row * pieces() + tile.piece;  // a row among others has one piece
#pragma unroll 1
    for (int first = threadIdx.x / kWarp * groups; first < tile.rows;
         first += static_cast<int>(blockDim.x) / kWarp * groups) {
      const int row = first + (lane() >> log2_lanes_);
      const bool is_row = row < tile.rows;
      A sum = 0;
#pragma unroll 1
      for (int i = of_group; is_row && i < tile.length; i += lanes) sum += numbers[row * tile.length + i];
      unsigned offset = lanes / 2;
#pragma unroll 1
      do sum += __shfl_xor_sync(kFullMask, sum, offset);
      while (offset /= 2);
      if (is_row && of_group == 0) out[row] = sum;
    }
  }

 private:
  int rows_ = 1, length_, last_rows_, last_length_;  // of a tile, and of the last one
  int log2_lanes_ = 1;
  Divisor row_, pieces_, tiles_;
  dim3 grid_;
};

// What adds the sums of pieces, where rows have more than one.
template <class A, int kWidth>
void add_pieces(const RowTiles<kWidth>& tiles, int64_t rows, const A* sums, A* values, Cuda device) {
  if (tiles.pieces() != 1) {
    launch(&piece_sums<A>, blocks_of_rows(rows), kThreads, device, rows, int64_t{tiles.pieces()}, sums, values);
  }
}

}  // namespace lineavae::cuda
