// SPDX-License-Identifier: Apache-2.0
// How a warp's rows leave it, when all that they see has passed.
#pragma once

#include <cmath>

#include "kernels/attention/attention_rows.h"
#include "kernels/attention/attention_softmax.h"

namespace earnest::attention::gpu::sm80 {

// The warp's rows of an operand, the tile's from `first`, to where line(row) says that a row begins: 16 bytes
// a lane at a time. Only rows below `count` are.
template <typename T, int kRows, int kDim, int S, typename Line>
__device__ inline void copy_out(Bytes from, int first, int count, T* to, const Line& line) {
  constexpr int kPieces = kDim / kPiece;
  __syncwarp();
#pragma unroll 1  // once a tile: what 16 of it would compute beforehand is spilled through all of it
  for (int i = 0; i < S * kStripRows * kPieces / simt::kWarpSize; ++i) {
    const int index = i * simt::kWarpSize + lane();
    const int row = first + index / kPieces, d = index % kPieces * kPiece;
    if (row < count) {
      *reinterpret_cast<uint4*>(to + line(row) + d) =
          *reinterpret_cast<const uint4*>(&from[place_of<kRows>(row, d)]);
    }
  }
}

// What the rows of the warp, the tile's from `first`, become: o over the sum of weights, and the logarithm of
// that sum. o goes through the warp's own rows of q, which nobody reads any more, so that 16 bytes a lane are
// written.
template <typename T, int kRows, int kDim, int S>
__device__ inline void write_rows(const Params& p, const Output& output, const Rows& rows, int first,
                                  const RowState (&states)[S][2], const Strips<S, kDim / 8>& o, Bytes q) {
#pragma unroll
  for (int strip = 0; strip < S; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + strip * kStripRows + strip_row(half);
      const RowState& state = states[strip][half];
      const float sum = sum_in_quad(state.sum), inverse = 1 / sum;
      const bool there = row < rows.count, sees = there && rows.seen(row) > 0;
      if (there && strip_column() == 0 && output.lse != nullptr) {
        double lse = -INFINITY;
        if (sees) lse = sum > 0 ? fma(double{state.largest}, p.scale, log(double{sum})) : NAN;
        output.lse[rows.line(row)] = lse;
      }
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        // Plus 0: a -0 that scaling down has left is no other number than 0.
        const float low = sees ? fmaf(o[strip][j][2 * half], inverse, 0.0f) : 0;
        const float high = sees ? fmaf(o[strip][j][2 * half + 1], inverse, 0.0f) : 0;
        *reinterpret_cast<uint32_t*>(&q[place_of<kRows>(row, 8 * j) + 2 * strip_column()]) =
            pack(low, high, T{});
      }
    }
  }
  copy_out<T, kRows, kDim, S>(q, first, rows.count, static_cast<T*>(output.out),
                              [&](int row) { return rows.line(row) * kDim; });
}

// Sums times a factor, through the warp's own rows of an operand that nobody reads any more. Where no row is
// there(row), 0.
template <typename T, int kRows, int kDim, int S, typename There, typename Line>
__device__ inline void write_sums(const Strips<S, kDim / 8>& sums, float factor, Bytes through, int first,
                                  int count, T* to, const There& there, const Line& line) {
#pragma unroll
  for (int strip = 0; strip < S; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + strip * kStripRows + strip_row(half);
      const bool is_there = there(row);
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        const float low = is_there ? sums[strip][j][2 * half] * factor : 0;
        const float high = is_there ? sums[strip][j][2 * half + 1] * factor : 0;
        *reinterpret_cast<uint32_t*>(&through[place_of<kRows>(row, 8 * j) + 2 * strip_column()]) =
            pack(low, high, T{});
      }
    }
  }
  copy_out<T, kRows, kDim, S>(through, first, count, to, line);
}

}  // namespace earnest::attention::gpu::sm80
