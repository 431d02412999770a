// SPDX-License-Identifier: Apache-2.0
// A strip is what one warp holds of a product: 16 rows by 8 J columns, four numbers per lane and 8 columns,
// as the instructions mma.m16n8k16 and wgmma.m64nNk16 both lay out their sums (PTX ISA, "matrix fragments").
// Lane l holds in strip[j][i] row l / 4 + 8 (i / 2), column 8 j + 2 (l % 4) + i % 2.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/bfloat16.h"
#include "kernels/common/mma.h"
#include "kernels/common/simt.h"

namespace earnest::logprob::gpu {

constexpr int kStripRows = 16;

template <typename T, int J>
using Strip = T[J][4];

template <int J, typename T>
__device__ inline void set_zero(Strip<T, J>& strip) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) strip[j][i] = 0;
  }
}

// Of the calling lane: its row in half h (0, 1) of a strip, and its first column of 8.
__device__ inline int strip_row(int half) { return static_cast<int>(threadIdx.x) % 32 / 4 + 8 * half; }
__device__ inline int strip_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

// Transposes 4 x 4 words among the four lanes of a quad: afterwards lane q holds in words[i] what lane i held
// in words[q]. Its own inverse. Two rounds, with the lanes at distance 1 and 2, each swap what belongs
// across.
__device__ inline void transpose_in_quad(uint32_t (&words)[4]) {
  const unsigned lane = threadIdx.x;
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool upper = (lane & static_cast<unsigned>(distance)) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      const uint32_t low = words[i], high = words[i + distance];
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, distance);
      words[i] = upper ? got : low;
      words[i + distance] = upper ? high : got;
    }
  }
}

struct alignas(16) Words {
  uint32_t word[4];
};

// A row-major matrix, of which rows [0, rows) and columns [0, columns) exist. `wide`: rows begin on 16 bytes
// and may be touched up to the next multiple of 8 columns.
template <typename Stored>
struct Matrix {
  Stored* data;
  int64_t pitch, rows, columns;
  bool wide;
};

// Path sm90a, whose strips have 256 columns, only runs where all matrices are wide.
template <int J, typename M>
__device__ inline bool is_wide(const M& matrix) {
  return J == 32 || matrix.wide;
}

// Calls each(j, i, row, column) for every number that the lane holds of the matrix.
template <int J, typename M, typename Each>
__device__ inline void for_each_in_strip(const M& matrix, int64_t row, int64_t column, const Each& each) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t r = row + strip_row(i / 2), c = column + 8 * j + strip_column() + i % 2;
      if (r < matrix.rows && c < matrix.columns) each(j, i, r, c);
    }
  }
}

// Writes a strip whose first number is (row, column) of the matrix; what lies outside is left out.
template <int J, typename Stored, typename T>
__device__ inline void store_strip(const Matrix<Stored>& to, int64_t row, int64_t column,
                                   const Strip<T, J>& strip) {
  if constexpr (sizeof(Stored) == 2) {
    if (is_wide<J>(to)) {  // four lanes write 64 bytes of a row, 16 each
      static_assert(J % 4 == 0);
#pragma unroll
      for (int j = 0; j < J; j += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Words words;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            words.word[i] = simt::pack_bfloat16(strip[j + i][2 * half], strip[j + i][2 * half + 1]);
          }
          transpose_in_quad(words.word);
          const int64_t r = row + strip_row(half), c = column + 8 * j + 4 * strip_column();
          if (r < to.rows && c < to.columns) *reinterpret_cast<Words*>(to.data + r * to.pitch + c) = words;
        }
      }
      return;
    }
  }
  for_each_in_strip<J>(to, row, column, [&](int j, int i, int64_t r, int64_t c) {
    narrow(strip[j][i], &to.data[r * to.pitch + c]);
  });
}

// Sums in float over several launches, for a result in bfloat16: the upper half of each sum lies in the
// result's own place, the lower half at the same place of an array in the workspace. Nothing is lost, and N H
// bfloat16 numbers of the workspace serve for N H floats.
struct SplitSums {
  Matrix<BFloat16> upper;
  BFloat16* lower;
};

// The sums so far; `zero`: none, whatever lies there.
template <int J>
__device__ inline void load_sums(const SplitSums& from, bool zero, int64_t row, int64_t column,
                                 Strip<float, J>& strip) {
  const Matrix<BFloat16>& upper = from.upper;
  const int64_t rows = zero ? 0 : upper.rows;
  if (is_wide<J>(upper)) {
#pragma unroll
    for (int j = 0; j < J; j += 4) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t r = row + strip_row(half), c = column + 8 * j + 4 * strip_column();
        Words high = {}, low = {};
        if (r < rows && c < upper.columns) {
          high = *reinterpret_cast<const Words*>(upper.data + r * upper.pitch + c);
          low = *reinterpret_cast<const Words*>(from.lower + r * upper.pitch + c);
        }
        transpose_in_quad(high.word);
        transpose_in_quad(low.word);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t first = high.word[i] << 16 | (low.word[i] & 0xffffu);
          const uint32_t second = (high.word[i] & 0xffff0000u) | low.word[i] >> 16;
          memcpy(&strip[j + i][2 * half], &first, sizeof first);
          memcpy(&strip[j + i][2 * half + 1], &second, sizeof second);
        }
      }
    }
    return;
  }
  set_zero<J>(strip);
  if (zero) return;
  for_each_in_strip<J>(upper, row, column, [&](int j, int i, int64_t r, int64_t c) {
    const uint32_t bits = static_cast<uint32_t>(upper.data[r * upper.pitch + c].bits) << 16 |
                          from.lower[r * upper.pitch + c].bits;
    memcpy(&strip[j][i], &bits, sizeof bits);
  });
}

template <int J>
__device__ inline void store_sums(const SplitSums& to, int64_t row, int64_t column,
                                  const Strip<float, J>& strip) {
  const Matrix<BFloat16>& upper = to.upper;
  if (is_wide<J>(upper)) {
#pragma unroll
    for (int j = 0; j < J; j += 4) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Words high, low;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t first, second;
          memcpy(&first, &strip[j + i][2 * half], sizeof first);
          memcpy(&second, &strip[j + i][2 * half + 1], sizeof second);
          high.word[i] = first >> 16 | (second & 0xffff0000u);
          low.word[i] = (first & 0xffffu) | second << 16;
        }
        transpose_in_quad(high.word);
        transpose_in_quad(low.word);
        const int64_t r = row + strip_row(half), c = column + 8 * j + 4 * strip_column();
        if (r >= upper.rows || c >= upper.columns) continue;
        *reinterpret_cast<Words*>(upper.data + r * upper.pitch + c) = high;
        *reinterpret_cast<Words*>(to.lower + r * upper.pitch + c) = low;
      }
    }
    return;
  }
  for_each_in_strip<J>(upper, row, column, [&](int j, int i, int64_t r, int64_t c) {
    uint32_t bits;
    memcpy(&bits, &strip[j][i], sizeof bits);
    upper.data[r * upper.pitch + c].bits = static_cast<uint16_t>(bits >> 16);
    to.lower[r * upper.pitch + c].bits = static_cast<uint16_t>(bits);
  });
}

}  // namespace earnest::logprob::gpu
