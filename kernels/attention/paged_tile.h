// SPDX-License-Identifier: Apache-2.0
// Attention of one block over one piece of a sequence's keys: tiles of 64 keys and values arrive in shared
// memory; each warp takes 16 query rows against 16 keys of every tile, as FlashAttention-2 does
// (arXiv 2307.08691), with running sums of its own; at the end the four warps of a row tile join theirs.
#pragma once

#include <cmath>

#include "kernels/attention/paged_float8.h"
#include "kernels/attention/paged_product.h"

namespace earnest::attention::paged {
namespace {

constexpr float kNothing = -INFINITY;  // the highest of no scores

// 2^x scaled: weights of scores relative to the highest, which itself weighs exactly 1. Subtracting before
// multiplying keeps that, and large scores finite. With no scores yet (`highest` is -inf) nothing weighs.
__device__ inline float weight_of(float score, float highest, float scale_log2) {
  return exp2f((score - (highest == kNothing ? 0.0f : highest)) * scale_log2);
}

template <int kDim>
__device__ inline void set_empty(RowSums<kDim>& sums) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums.highest[half] = kNothing;
    sums.total[half] = 0;
  }
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums.out[j][i] = 0;
  }
}

// Turns scores into weights, and brings the sums so far to the same highest score.
template <int kDim>
__device__ inline void weigh(float (&scores)[2][4], float scale_log2, RowSums<kDim>& sums) {
  float change[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = fmaxf(fmaxf(scores[0][2 * half], scores[0][2 * half + 1]),
                          fmaxf(scores[1][2 * half], scores[1][2 * half + 1]));
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 2));
    highest = fmaxf(highest, sums.highest[half]);
    change[half] = weight_of(sums.highest[half], highest, scale_log2);
    sums.highest[half] = highest;
    float total = 0;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[j][i] = weight_of(scores[j][i], highest, scale_log2);
        total += scores[j][i];
      }
    }
    sums.total[half] = sums.total[half] * change[half] + total;
  }
  // Mostly nothing changes, and a factor of 1 changes no bit.
  if (!__any_sync(kFullWarp, change[0] != 1.0f || change[1] != 1.0f)) return;
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums.out[j][i] *= change[i / 2];
  }
}

// One tile. visible: how many of its 64 keys each of the lane's two rows sees.
template <typename Number, typename Stored, int kDim>
__device__ inline void attend_tile(const Bytes& queries, const Bytes& keys, const Bytes& values,
                                   const int (&visible)[2], float scale_log2, RowSums<kDim>& sums) {
  float scores[2][4] = {};
  multiply_keys<kDim>(queries, keys, scores, Number{}, Stored{});
  const int first = 16 * key_group() + lane_of_warp() % 4 * 2;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + 8 * j + i % 2 >= visible[i / 2]) scores[j][i] = kNothing;
  }
  weigh(scores, scale_log2, sums);
  const uint32_t weights[4] = {
      pack(scores[0][0], scores[0][1], Number{}), pack(scores[0][2], scores[0][3], Number{}),
      pack(scores[1][0], scores[1][1], Number{}), pack(scores[1][2], scores[1][3], Number{})};
  multiply_values(weights, values, sums, Number{}, Stored{});
}

// The whole block together, when all tiles have been read: the key groups' sums, added in their order. The
// last group's warps get them. The place of tiles and queries is used.
template <int kDim>
__device__ inline void join_key_groups(float scale_log2, RowSums<kDim>& sums) {
  const int tiles = static_cast<int>(blockDim.x) / kThreadsOfRowTile, rows = tiles * kRowTile;
  const int size = sums_floats(kDim, tiles), lane = lane_of_warp(), group = key_group();
  const auto all = simt::dynamic_shared<float>(0, static_cast<size_t>(size));
  const auto highest =
      simt::dynamic_shared<float>(static_cast<size_t>(size) * 4, static_cast<size_t>(kKeyGroups * rows));
  const auto totals = simt::dynamic_shared<float>(static_cast<size_t>(size + kKeyGroups * rows) * 4,
                                                  static_cast<size_t>(kKeyGroups * rows));
  __syncthreads();
  float change[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums.total[half] += __shfl_xor_sync(kFullWarp, sums.total[half], 1);
    sums.total[half] += __shfl_xor_sync(kFullWarp, sums.total[half], 2);
    if (lane % 4 == 0) {
      highest[group * rows + row_of_lane(half)] = sums.highest[half];
      totals[group * rows + row_of_lane(half)] = sums.total[half];
    }
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of_lane(half);
    float most = kNothing, total = 0;
    for (int g = 0; g < kKeyGroups; ++g) most = fmaxf(most, highest[g * rows + row]);
    for (int g = 0; g < kKeyGroups; ++g)
      total += totals[g * rows + row] * weight_of(highest[g * rows + row], most, scale_log2);
    change[half] = weight_of(sums.highest[half], most, scale_log2);
    sums.highest[half] = most;
    sums.total[half] = total;
  }
#pragma unroll 1
  for (int g = 0; g < kKeyGroups; ++g) {
    if (g == group) {
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = (row_tile() * (kDim / 8) * 4 + 4 * j + i) * 32 + lane;
          float sum = sums.out[j][i] * change[i / 2];
          if (g > 0) sum = all[at] + sum;
          if (g < kKeyGroups - 1) all[at] = sum;
          sums.out[j][i] = sum;
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace earnest::attention::paged
