// SPDX-License-Identifier: Apache-2.0
// NaN and Inf among the values of a tile of keys that some row does not see whole. In a product the weight 0
// of a hidden key would make NaN of them. So they are added beforehand, to the rows that see them, and then
// count as 0: a row gets what it would have got in a tile that it sees whole. Rarely run, hence compact, not
// fast.
#pragma once

#include "kernels/attention/attention_operands.h"

namespace earnest::attention::gpu::sm80 {

struct Columns {  // that a row sees: [begin, end)
  int begin, end;
};

// Among the pieces of one of kCount threads, on sm80 those that it has brought itself.
template <typename T, int kDim, int kCount = kThreads>
__device__ inline bool has_unfinite(Bytes v, int thread) {
  bool found = false;
  for_each_piece<kKeys, kDim, kCount>(thread, [&](int key, int d) {
    const auto& piece = *reinterpret_cast<const uint4*>(&v[place_of<kKeys>(key, d)]);
    for (const uint32_t word : {piece.x, piece.y, piece.z, piece.w})
      found |= is_unfinite(word, T{}) || is_unfinite(word >> 16, T{});
  });
  return found;
}

template <typename T, int kDim, int kCount = kThreads>
__device__ inline void clear_unfinite(Bytes v, int thread) {
  for_each_piece<kKeys, kDim, kCount>(thread, [&](int key, int d) {
    for (int word = 0; word < kPieceBytes / 4; ++word) {
      auto* const at = reinterpret_cast<uint32_t*>(&v[place_of<kKeys>(key, d) + 4 * word]);
      *at = finite_of(*at, T{});
    }
  });
}

// Of the strip's row in this half: which keys of the tile have a weight above 0 (or of NaN), a bit each.
template <int J>
__device__ inline uint64_t keys_that_weigh(const uint32_t (&weights)[J][2], int half) {
  uint64_t bits = 0;
#pragma unroll
  for (int j = 0; j < J; ++j) {
    const uint32_t pair = weights[j][half];
    const uint64_t both = ((pair & 0xffffu) != 0 ? 1u : 0u) | ((pair >> 16) != 0 ? 2u : 0u);
    bits |= both << (8 * j + strip_column());
  }
  for (int distance = 1; distance <= 2; distance *= 2) {
    const auto low = static_cast<uint32_t>(bits), high = static_cast<uint32_t>(bits >> 32);
    bits |= __shfl_xor_sync(simt::kFullWarp, low, distance) |
            static_cast<uint64_t>(__shfl_xor_sync(simt::kFullWarp, high, distance)) << 32;
  }
  return bits;
}

// o += weight * value of every value that is not finite, of the first 8 J, where the row sees its key. With
// any weight above 0 that is the value itself, and with 0 it is NaN. seen(row): the keys that it sees.
template <typename T, int kDim, int S, int J, typename Seen>
__device__ inline void add_unfinite(const Weights<S, J>& weights, Bytes v, const Seen& seen,
                                    Strips<S, kDim / 8>& o) {
#pragma unroll
  for (int strip = 0; strip < S; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Columns sees = seen(strip * kStripRows + strip_row(half));
      const uint64_t weigh = keys_that_weigh(weights[strip], half);
#pragma unroll 1
      for (int key = sees.begin > 0 ? sees.begin : 0; key < 8 * J && key < sees.end; ++key) {
        const float weight = (weigh >> key & 1) != 0 ? 1.0f : 0.0f;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
          const int place = place_of<kKeys>(key, 8 * j) + 2 * strip_column();
          const uint32_t pair = *reinterpret_cast<const uint32_t*>(&v[place]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t bits = i == 0 ? pair & 0xffffu : pair >> 16;
            if (is_unfinite(bits, T{}))
              o[strip][j][2 * half + i] += weight * widen(T{static_cast<uint16_t>(bits)});
          }
        }
      }
    }
  }
}

}  // namespace earnest::attention::gpu::sm80
