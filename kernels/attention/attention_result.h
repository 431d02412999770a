// SPDX-License-Identifier: Apache-2.0
// How a warp's rows leave it, when they have seen all keys.
#pragma once

#include <cmath>

#include "kernels/attention/attention_rows.h"
#include "kernels/attention/attention_softmax.h"

namespace earnest::attention::gpu::sm80 {

// What the rows of the warp, the tile's from `first`, become: o over the sum of weights, and the logarithm of
// that sum. o goes through the warp's own rows of q, which nobody reads any more, so that 16 bytes a lane are
// written.
template <typename T, int kRows, int kDim, int S>
__device__ inline void write_rows(const Params& p, const Output& output, const Rows& rows, int first,
                                  const RowState (&states)[S][2], const Strips<S, kDim / 8>& o, Bytes q) {
  constexpr int kPieces = kDim / kPiece;
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
  __syncwarp();
#pragma unroll 1  // once a tile: what 16 of it would compute beforehand is spilled through all of it
  for (int i = 0; i < S * kStripRows * kPieces / simt::kWarpSize; ++i) {
    const int index = i * simt::kWarpSize + lane();
    const int row = first + index / kPieces, d = index % kPieces * kPiece;
    if (row < rows.count) {
      *reinterpret_cast<uint4*>(static_cast<T*>(output.out) + rows.line(row) * kDim + d) =
          *reinterpret_cast<const uint4*>(&q[place_of<kRows>(row, d)]);
    }
  }
}

}  // namespace earnest::attention::gpu::sm80
