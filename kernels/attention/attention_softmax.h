// SPDX-License-Identifier: Apache-2.0
// The softmax of a row whose keys come tile by tile (Milakov and Gimelshein 2018, "Online normalizer
// calculation for softmax"): the largest score so far, and the sum of exp(score - largest), which with the
// sums of values is scaled down when a larger score comes.
//
// A tile that shows a row no key changes no bit of it: the largest score stays, the scale is 2^0 = 1, and
// what is added is 0.
#pragma once

#include <cmath>

#include "kernels/attention/attention_operands.h"

namespace earnest::attention::gpu::sm80 {

__device__ inline float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// Of the four lanes that share a row, each gets the same bits.
__device__ inline float largest_in_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(simt::kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(simt::kFullWarp, x, 2));
}
__device__ inline float sum_in_quad(float x) {
  x += __shfl_xor_sync(simt::kFullWarp, x, 1);
  return x + __shfl_xor_sync(simt::kFullWarp, x, 2);
}

struct RowState {
  float largest = -INFINITY;  // score, before the scale; never NaN
  float sum = 0;              // of the lane's own columns
};

// Scores of keys that a row does not see become -inf. seen(row): how many of the tile's it sees, the first.
template <int S, int J, typename Seen>
__device__ inline void hide_unseen(Strips<S, J>& s, const Seen& seen) {
#pragma unroll
  for (int strip = 0; strip < S; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int count = seen(strip * kStripRows + strip_row(half)) - strip_column();
#pragma unroll
      for (int j = 0; j < J; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (8 * j + i >= count) s[strip][j][2 * half + i] = -INFINITY;
        }
      }
    }
  }
}

// Of one row, half of a strip: scores become weights exp2((score - largest) * scale). Returns what was summed
// of o before is to be multiplied by. The difference comes first: the largest score's weight is exactly 1,
// and huge scores do not overflow.
template <int J>
__device__ inline float weigh_row(float scale, int half, float (&s)[J][4], RowState& state) {
  float largest = state.largest;
#pragma unroll
  for (int j = 0; j < J; ++j) largest = fmaxf(largest, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
  largest = largest_in_quad(largest);
  const float base = largest == -INFINITY ? 0 : largest;  // nothing seen so far, or only -inf
  const float keep = exp2_of((state.largest - base) * scale);
  float sum = 0;
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 2 * half; i < 2 * half + 2; ++i) {
      s[j][i] = exp2_of((s[j][i] - base) * scale);
      sum += s[j][i];
    }
  }
  state.largest = largest;
  state.sum = fmaf(state.sum, keep, sum);
  return keep;
}

template <int J>
__device__ inline void scale_row(float factor, int half, float (&o)[J][4]) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
    o[j][2 * half] *= factor;
    o[j][2 * half + 1] *= factor;
  }
}

template <int S, int J, int K>
__device__ inline void weigh(float scale, Strips<S, J>& s, RowState (&states)[S][2], Strips<S, K>& o) {
#pragma unroll
  for (int strip = 0; strip < S; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      scale_row(weigh_row(scale, half, s[strip], states[strip][half]), half, o[strip]);
  }
}

}  // namespace earnest::attention::gpu::sm80
