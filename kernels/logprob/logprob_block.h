// SPDX-License-Identifier: Apache-2.0
// A block's product of two operands in shared memory, as path sm80 does it: 128 x 128 of the result, each of
// eight warps two strips of 16 x 64.
//
// An operand's tile is 128 lines of 128 bytes, whether it lies transposed or not. Not transposed, a line is
// one row's step along the depth. Transposed, a line is one step's 128 bytes along the rows; 128 rows need 2
// (bfloat16), 4 (float32) or 8 (float64) of them. The 16-byte pieces of line l stand at piece ^ (l % 8):
// eight lines' equal pieces lie in different banks. These are also the boxes that TMA writes with its
// 128-byte swizzle (common/hopper.h).
#pragma once

#include "kernels/common/mma.h"
#include "kernels/logprob/logprob_paths.h"

namespace earnest::logprob::gpu::sm80 {

constexpr int kThreads = 256, kTile = 128;
constexpr int kLineBytes = 128, kPieceBytes = 16, kPieces = kLineBytes / kPieceBytes;
constexpr int kOperandBytes = kTile * kLineBytes;
constexpr int kStripsOfWarp = 2, kColumnsOfWarp = 64, kJ = kColumnsOfWarp / 8;

template <typename Stored>
constexpr int kStep = kLineBytes / static_cast<int>(sizeof(Stored));  // along the depth
template <typename Stored>
constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(Stored));  // elements

using Bytes = simt::Shared<unsigned char>;

// Where the piece with (row, k) begins in an operand's tile; row in [0, 128), k in [0, kStep).
template <typename Stored, bool kTransposed>
__device__ inline int place_of(int row, int k) {
  const int line = kTransposed ? row / kStep<Stored> * kStep<Stored> + k : row;
  const int piece = (kTransposed ? row % kStep<Stored> : k) / kPiece<Stored>;
  return line * kLineBytes + (piece ^ (line & 7)) * kPieceBytes;
}

// Rows [row, row + 128) and depth [k, k + kStep) of an operand, on their way into shared memory: there after
// the group of copies has been waited for. What lies outside is 0.
template <typename Stored, bool kTransposed>
__device__ inline void load_tile(Bytes to, const Operand& from, int64_t row, int64_t rows, int64_t k,
                                 int64_t depth, bool wide) {
  const auto* data = static_cast<const Stored*>(from.data);
  [[maybe_unused]] constexpr int kUnroll = sizeof(Stored) == 8 ? 1 : 4;  // float64's sums leave no registers
#pragma unroll kUnroll
  for (int i = 0; i < kTile * kPieces / kThreads; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads;
    const int line = index / kPieces, piece = index % kPieces * kPiece<Stored>;
    const int r = kTransposed ? line / kStep<Stored> * kStep<Stored> + piece : line;
    const int d = kTransposed ? line % kStep<Stored> : piece;
    // As it lies in memory: a line and a number within it.
    const int64_t outer = kTransposed ? k + d : row + r, inner = kTransposed ? row + r : k + d;
    const int64_t left = (kTransposed ? rows : depth) - inner;
    const bool inside = outer < (kTransposed ? depth : rows) && left > 0;
    const int count = !inside ? 0 : left < kPiece<Stored> ? static_cast<int>(left) : kPiece<Stored>;
    const Stored* source = data + (inside ? outer * from.pitch + inner : 0);
    const int place = place_of<Stored, kTransposed>(r, d);
    if (wide) {
      simt::copy_async_16(&to[place], source, count * static_cast<int>(sizeof(Stored)));
      continue;
    }
    for (int e = 0; e < kPiece<Stored>; ++e) {
      Stored value = {};
      if (e < count) value = source[e];
      memcpy(&to[place + e * static_cast<int>(sizeof(Stored))], &value, sizeof value);
    }
  }
}

template <typename T>
using Sums = Strip<T, kJ>[kStripsOfWarp];

// Of the calling warp: its first row and column in the tile.
__device__ inline int warp_row() {
  return static_cast<int>(threadIdx.x) / 32 % 4 * kStripsOfWarp * kStripRows;
}
__device__ inline int warp_column() { return static_cast<int>(threadIdx.x) / 32 / 4 * kColumnsOfWarp; }

// An 8 x 8 matrix for ldmatrix begins at (row, k): the calling lane's line of it.
template <bool kTransposed>
__device__ inline int matrix_line(int row, int k) {
  const int line = static_cast<int>(threadIdx.x) % 8;
  return place_of<BFloat16, kTransposed>(kTransposed ? row : row + line, kTransposed ? k + line : k);
}
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&registers)[4], Bytes from, int row, int k) {
  const auto* line = &from[matrix_line<kTransposed>(row, k)];
  if constexpr (kTransposed) {
    simt::ldmatrix_x4_trans(registers, line);
  } else {
    simt::ldmatrix_x4(registers, line);
  }
}

// bfloat16: 16 steps of the depth at a time on tensor cores. Of the four matrices of one load, the left
// operand wants its rows to change first, then the depth; the right one, which serves two times 8 columns,
// the other way round.
template <bool kLeftTransposed, bool kRightTransposed>
__device__ inline void multiply(Bytes left, Bytes right, Sums<float>& sums, BFloat16) {
  const int matrix = static_cast<int>(threadIdx.x) % 32 / 8, low = matrix % 2 * 8, high = matrix / 2 * 8;
#pragma unroll
  for (int k = 0; k < kStep<BFloat16>; k += 16) {
    uint32_t a[kStripsOfWarp][4];
#pragma unroll
    for (int s = 0; s < kStripsOfWarp; ++s) {
      load_matrices<kLeftTransposed>(a[s], left, warp_row() + s * kStripRows + low, k + high);
    }
#pragma unroll
    for (int j = 0; j < kJ; j += 2) {
      uint32_t b[4];
      load_matrices<kRightTransposed>(b, right, warp_column() + 8 * j + high, k + low);
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
      for (int s = 0; s < kStripsOfWarp; ++s) {
        simt::mma_16x8x16(sums[s][j], a[s], first);
        simt::mma_16x8x16(sums[s][j + 1], a[s], second);
      }
    }
  }
}

template <typename T, bool kTransposed>
__device__ inline T number_at(Bytes from, int row, int k) {
  const int within = (kTransposed ? row : k) % kPiece<T> * static_cast<int>(sizeof(T));
  return *reinterpret_cast<const T*>(&from[place_of<T, kTransposed>(row, k) + within]);
}

// float32 and float64: multiply-adds, one step of the depth after the other.
template <bool kLeftTransposed, bool kRightTransposed, typename T>
__device__ inline void multiply(Bytes left, Bytes right, Sums<T>& sums, T) {
#pragma unroll 1
  for (int k = 0; k < kStep<T>; ++k) {
    T a[kStripsOfWarp][2];
#pragma unroll
    for (int s = 0; s < kStripsOfWarp; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[s][half] = number_at<T, kLeftTransposed>(left, warp_row() + s * kStripRows + strip_row(half), k);
      }
    }
#pragma unroll
    for (int j = 0; j < kJ; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const T b = number_at<T, kRightTransposed>(right, warp_column() + 8 * j + strip_column() + i, k);
#pragma unroll
        for (int s = 0; s < kStripsOfWarp; ++s) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            T& sum = sums[s][j][2 * half + i];
            sum = multiply_add(a[s][half], b, sum);
          }
        }
      }
    }
  }
}

}  // namespace earnest::logprob::gpu::sm80
