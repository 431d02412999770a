// SPDX-License-Identifier: Apache-2.0
// The two products of attention over pages, of one warp: 16 query rows against 16 keys of a tile in shared
// memory, and weights of these against their values. Here with a cache of the queries' own numbers, bfloat16
// or float16; paged_float8.h has eight bits.
//
// What a lane holds of 16 rows: rows lane / 4 and lane / 4 + 8, by mma.h's layout of d.
#pragma once

#include "kernels/attention/attention_operands.h"
#include "kernels/attention/paged_plan.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/mma.h"
#include "kernels/common/simt.h"

namespace earnest::attention::paged {
namespace {

using Bytes = simt::Shared<unsigned char>;
using gpu::sm80::multiply;
using gpu::sm80::pack;
using simt::kFullWarp;

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int key_group() { return static_cast<int>(threadIdx.x) / 32 % kKeyGroups; }
__device__ inline int row_tile() { return static_cast<int>(threadIdx.x) / kThreadsOfRowTile; }
// Of the calling lane, in the block.
__device__ inline int row_of_lane(int half) { return row_tile() * kRowTile + lane_of_warp() / 4 + 8 * half; }

// Where 16 bytes of a row of so many lie. They change places from row to row, so that ldmatrix, which reads
// one column of eight rows, meets all banks. Chunk 2 n + i lies where chunk i does, ^ 32 n.
template <int kChunks>
__device__ inline int place_of(int row, int chunk) {
  static_assert(kChunks == 4 || kChunks % 8 == 0);
  return (row * kChunks + (chunk ^ (kChunks == 4 ? row / 2 % 4 : row % 8))) * 16;
}

// The sums of one lane: of each half, the highest score so far, the sum of its own columns' weights relative
// to it, and the weighted sum of values (half i / 2; pair_of and column_of say which columns).
template <int kDim>
struct RowSums {
  float highest[2], total[2];
  float out[kDim / 8][4];
};

// Scores of the warp's rows and keys: two tiles of 8 keys.
template <int kDim, typename Number>
__device__ inline void multiply_keys(const Bytes& queries, const Bytes& keys, float (&scores)[2][4], Number,
                                     Number) {
  constexpr int kChunks = kDim / 8;
  const int lane = lane_of_warp();
  const int row = place_of<kChunks>(row_tile() * kRowTile + lane % 16, lane / 16);
  const int key = place_of<kChunks>(16 * key_group() + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t a[4], b[4];
    simt::ldmatrix_x4(a, &queries[row ^ 32 * d]);
    simt::ldmatrix_x4(b, &keys[key ^ 32 * d]);
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    multiply(scores[0], a, first, Number{});
    multiply(scores[1], a, second, Number{});
  }
}

// out += weights values: tiles 2 d and 2 d + 1 of the output are columns 16 d to 16 d + 15.
template <int kDim, typename Number>
__device__ inline void multiply_values(const uint32_t (&weights)[4], const Bytes& values, RowSums<kDim>& sums,
                                       Number, Number) {
  const int lane = lane_of_warp(), key = place_of<kDim / 8>(16 * key_group() + lane % 16, lane / 16);
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t b[4];
    simt::ldmatrix_x4_trans(b, &values[key ^ 32 * d]);
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    multiply(sums.out[2 * d], weights, first, Number{});
    multiply(sums.out[2 * d + 1], weights, second, Number{});
  }
}

// The pairs of neighbouring columns that a lane holds: pair j of a half, and its first column.
template <int kDim, typename Number>
__device__ inline float2 pair_of(const RowSums<kDim>& sums, int half, int j, Number) {
  return make_float2(sums.out[j][2 * half], sums.out[j][2 * half + 1]);
}
template <typename Number>
__device__ inline int column_of(int j, Number) {
  return 8 * j + lane_of_warp() % 4 * 2;
}

}  // namespace
}  // namespace earnest::attention::paged
