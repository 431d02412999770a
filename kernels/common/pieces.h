// SPDX-License-Identifier: Apache-2.0
// Products on tensor cores from pieces: 16 bytes, 8 bfloat16 that follow each other along the depth. A warp
// takes the depth in chunks of 32; of a row (or a column) of a chunk lane (g, t) holds piece t, as it lies in
// memory. Two mma.sync take 4 numbers of it each. So what mma calls 16 steps of the depth are in the first
// one 0 1 2 3, 8 9 10 11, 16 ... of the chunk, for both operands, and a fragment is a single load of 16
// bytes, from memory or from shared memory, without ldmatrix.
//
// Whoever adds chunks in the same order gets the same bits, if an instruction gives a number bits that depend
// on its row of a, its column of b and its sum alone, wherever in the fragment they stand. No manual says so;
// tests/cpp/test_linear_cuda.cc looks.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/bfloat16.h"
#include "kernels/common/mma.h"

namespace earnest {

constexpr int kPieceBytes = 16, kChunk = 32;

struct alignas(16) Piece {
  uint32_t word[4];
};

using Bytes = simt::Shared<unsigned char>;

// 16 bytes of which `count` numbers exist, on their way into shared memory: there after the group of copies
// has been waited for. The others become 0. `wide`: `from` lies on 16 bytes.
template <typename Stored>
__device__ inline void copy_piece(unsigned char* to, const Stored* from, int count, bool wide) {
  constexpr int kSize = sizeof(Stored);
  if (wide) {
    simt::copy_async_16(to, from, count * kSize);
    return;
  }
  for (int e = 0; e < kPieceBytes / kSize; ++e) {
    Stored value = {};
    if (e < count) value = from[e];
    memcpy(to + e * kSize, &value, kSize);
  }
}

// Numbers of a piece that exist, of `left` that there are from its first on.
template <typename Stored>
__device__ inline int count_of(int64_t left) {
  constexpr int kMost = kPieceBytes / static_cast<int>(sizeof(Stored));
  return left < 0 ? 0 : left < kMost ? static_cast<int>(left) : kMost;
}

__device__ inline Piece piece_at(const Bytes& from, int byte) {
  return *reinterpret_cast<const Piece*>(&from[byte]);
}

// Half a chunk (0, 1): sums += left right, of 16 rows (g and g + 8) and 8 columns.
__device__ inline void multiply_half(float (&sums)[4], const Piece (&left)[2], const Piece& right, int half) {
  const int i = 2 * half;
  const uint32_t a[4] = {left[0].word[i], left[1].word[i], left[0].word[i + 1], left[1].word[i + 1]};
  const uint32_t b[2] = {right.word[i], right.word[i + 1]};
  simt::mma_16x8x16(sums, a, b);
}

// Where piece `piece` (0 to 7) of line `line` lies in a tile of lines of 128 bytes. Lanes that load together
// have pieces t or t + 4 of two lines that are neighbours, and meet no bank twice; float32 reads lines whose
// numbers are 8 apart.
__device__ inline int place_in_tile(int line, int piece) {
  const int turn = (line & 1) << 2 | ((line >> 1 ^ line >> 3) & 3);
  return line * 128 + (piece ^ turn) * kPieceBytes;
}

}  // namespace earnest
