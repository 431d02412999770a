// SPDX-License-Identifier: Apache-2.0
// Operands of path sm80 in shared memory, and its two products. A tile of R rows of `dim` numbers lies in
// panels of 64 numbers: R lines of 128 bytes each. The 16-byte pieces of line l stand at piece ^ (l % 8), so
// that equal pieces of eight lines lie in different banks. (TMA's 128-byte swizzle writes the same boxes.)
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/attention/attention_plan.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/mma.h"

namespace earnest::attention::gpu::sm80 {

constexpr int kThreads = 128, kWarps = 4;
constexpr int kStripRows = 16;  // of mma.m16n8k16
constexpr int kLineBytes = 128, kPieceBytes = 16;
constexpr int kPiece = 8, kLine = 64;  // in numbers

using Bytes = simt::Shared<unsigned char>;

// What one warp holds of S strips of 16 rows by 8 J columns: lane l in [s][j][i] row 16 s + l / 4 + 8 (i /
// 2), column 8 j + 2 (l % 4) + i % 2.
template <int S, int J>
using Strips = float[S][J][4];

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int lane() { return static_cast<int>(threadIdx.x) % simt::kWarpSize; }
// Of the calling lane: its row in half h (0, 1) of a strip, and the first of its two columns of 8.
__device__ inline int strip_row(int half) { return lane() / 4 + 8 * half; }
__device__ inline int strip_column() { return lane() % 4 * 2; }

// The same number, as if nobody had known it: what is computed from it is not kept in registers, of which
// there are not enough, through all tiles.
template <typename Int>
__device__ inline Int afresh(Int x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// ---- numbers of 16 bits ----

__device__ inline uint32_t pack(float low, float high, BFloat16) { return simt::pack_bfloat16(low, high); }
__device__ inline uint32_t pack(float low, float high, Float16) { return simt::pack_float16(low, high); }
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
  simt::mma_16x8x16(d, a, b);
}
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Float16) {
  simt::mma_16x8x16_float16(d, a, b);
}
// Of bits in the lower half of a word: whether the exponent's are all 1, as of Inf and NaN.
__device__ inline bool is_unfinite(uint32_t bits, BFloat16) { return (bits & 0x7f80u) == 0x7f80u; }
__device__ inline bool is_unfinite(uint32_t bits, Float16) { return (bits & 0x7c00u) == 0x7c00u; }

// Of two numbers those that are finite, and 0 in place of others.
template <typename T>
__device__ inline uint32_t finite_of(uint32_t pair, T) {
  if (is_unfinite(pair, T{})) pair &= 0xffff0000u;
  if (is_unfinite(pair >> 16, T{})) pair &= 0x0000ffffu;
  return pair;
}

// ---- into shared memory ----

// Where the piece with number d of a row begins, in an operand of kRows rows.
template <int kRows>
__device__ inline int place_of(int row, int d) {
  return (d / kLine * kRows + row) * kLineBytes + ((d % kLine / kPiece) ^ (row & 7)) * kPieceBytes;
}

// Calls each(row, d) for the pieces that one of kCount threads brings of an operand of kRows rows.
template <int kRows, int kDim, int kCount = kThreads, typename Each>
__device__ inline void for_each_piece(int thread, const Each& each) {
  constexpr int kPieces = kDim / kPiece, kRowsAtOnce = kCount / kPieces;
  static_assert(kRows % kRowsAtOnce == 0);
  const int first = thread / kPieces, d = thread % kPieces * kPiece;
#pragma unroll 2  // addresses that wait in registers for their turn are none left for sums
  for (int i = 0; i < kRows / kRowsAtOnce; ++i) each(first + i * kRowsAtOnce, d);
}

// Rows [0, count) of an operand on their way; those after them are 0. line(row) says where a row begins.
template <int kRows, int kDim, typename T, typename Line>
__device__ inline void load_rows(Bytes to, const T* from, int count, const Line& line) {
  for_each_piece<kRows, kDim>(thread(), [&](int row, int d) {
    const bool there = row < count;
    const T* piece = there ? from + line(row) + d : from;
    simt::copy_async_16(&to[place_of<kRows>(row, d)], piece, there ? kPieceBytes : 0);
  });
}

// ---- products ----
// Of the four 8 x 8 matrices that one ldmatrix brings, the left operand wants its rows to change first, then
// the depth; the right one, which serves two times 8 columns, the other way round.

struct Corner {  // of the matrix whose line the calling lane names
  int low, high;
  __device__ explicit Corner(int lane = sm80::lane()) : low(lane / 8 % 2), high(lane / 16) {}
};

// Where that line begins: of rows from `row`, a multiple of 8, and the piece after d, a multiple of 16, or
// the next. What is known when compiling stands apart from what depends on the lane.
template <int kRows>
__device__ inline int line_of(int row, int d, int piece, int lane = sm80::lane()) {
  const int line = lane % 8;
  return (d / kLine * kRows + row + line) * kLineBytes + ((d % kLine / kPiece) ^ piece ^ line) * kPieceBytes;
}

// s += q k^T of the first 8 J keys. `row`: the warp's first of q.
template <typename T, int kRows, int kDim, int S, int J>
__device__ inline void add_scores(Bytes q, Bytes k, int row, Strips<S, J>& s) {
  const Corner corner;
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    uint32_t a[S][4];
#pragma unroll
    for (int strip = 0; strip < S; ++strip) {
      const int first = row + strip * kStripRows + 8 * corner.low;
      simt::ldmatrix_x4(a[strip], &q[line_of<kRows>(first, d, corner.high)]);
    }
#pragma unroll
    for (int j = 0; j < J; j += 2) {
      uint32_t b[4];
      simt::ldmatrix_x4(b, &k[line_of<kKeys>(8 * j + 8 * corner.high, d, corner.low)]);
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
      for (int strip = 0; strip < S; ++strip) {
        multiply(s[strip][j], a[strip], first, T{});
        multiply(s[strip][j + 1], a[strip], second, T{});
      }
    }
  }
}

// Weights of a tile of keys, rounded: [s][j][h] holds the two columns of 8 in the row of half h. The sums of
// one product are laid out as the left operand of the next wants them.
template <int S, int J = kKeys / 8>
using Weights = uint32_t[S][J][2];

template <typename T, int S, int J>
__device__ inline void round_weights(const Strips<S, J>& from, Weights<S, J>& to) {
#pragma unroll
  for (int strip = 0; strip < S; ++strip) {
#pragma unroll
    for (int j = 0; j < J; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        to[strip][j][half] = pack(from[strip][j][2 * half], from[strip][j][2 * half + 1], T{});
    }
  }
}

// Keys [key, key + 16) as the left operand.
template <int S, int J>
__device__ inline void left_operand(const Weights<S, J>& p, int strip, int key, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = p[strip][key / 8 + i / 2][i % 2];
}

// o += p v of the first 8 J keys. kFiniteOnly: what is not finite of v counts as 0.
template <typename T, int kDim, int S, bool kFiniteOnly = false, int J>
__device__ inline void add_values(const Weights<S, J>& p, Bytes v, Strips<S, kDim / 8>& o) {
  const Corner corner;
#pragma unroll
  for (int key = 0; key < 8 * J; key += 16) {
    uint32_t a[S][4];
#pragma unroll
    for (int strip = 0; strip < S; ++strip) left_operand(p, strip, key, a[strip]);
#pragma unroll
    for (int j = 0; j < kDim / 8; j += 2) {
      uint32_t b[4];
      simt::ldmatrix_x4_trans(b, &v[line_of<kKeys>(key + 8 * corner.low, 8 * j, corner.high)]);
      if constexpr (kFiniteOnly) {
#pragma unroll
        for (uint32_t& pair : b) pair = finite_of(pair, T{});
      }
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
      for (int strip = 0; strip < S; ++strip) {
        multiply(o[strip][j], a[strip], first, T{});
        multiply(o[strip][j + 1], a[strip], second, T{});
      }
    }
  }
}

}  // namespace earnest::attention::gpu::sm80
