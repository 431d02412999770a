// SPDX-License-Identifier: Apache-2.0
// The products of paged_product.h with a cache of e4m3: bytes become the queries' numbers, which hold each of
// them, on their way from shared memory to mma.sync. ldmatrix moves pairs of bytes, so a lane gets dims 4t to
// 4t + 3 of 16 where mma.sync wants 2t, 2t + 1, 2t + 8 and 2t + 9. That is another order of the dims along
// the sum, which the queries follow, and of the columns of the output, which is told at the end.
#pragma once

#include "kernels/attention/paged_product.h"
#include "kernels/common/float8.h"

namespace earnest::attention::paged {
namespace {

// A byte's exponent and fraction, moved by kShift to where numbers of 16 bits have theirs, are too small by
// the factor that kScale holds twice, subnormal ones too. kExponent: all ones there.
template <typename Number>
struct FromByte;
template <>
struct FromByte<BFloat16> {
  static constexpr uint32_t kShift = 4, kScale = 0x7b807b80u, kExponent = 0x7f80u;  // 2^120
  __device__ static uint32_t multiply(uint32_t x) { return simt::multiply_bfloat16(x, kScale); }
};
template <>
struct FromByte<Float16> {
  static constexpr uint32_t kShift = 7, kScale = 0x5c005c00u, kExponent = 0x7c00u;  // 2^8
  __device__ static uint32_t multiply(uint32_t x) { return simt::multiply_float16(x, kScale); }
};

// Bytes 0 and 2 of a word as numbers of 16 bits, and bytes 1 and 3.
template <typename Number>
__device__ inline void widen_bytes(uint32_t word, uint32_t* even, uint32_t* odd) {
  using From = FromByte<Number>;
  constexpr uint32_t kSigns = 0x80008000u, kRest = 0x007f007fu << From::kShift;
  *even = From::multiply((word << 8 & kSigns) | (word << From::kShift & kRest));
  *odd = From::multiply((word & kSigns) | (word >> (8 - From::kShift) & kRest));
  const uint32_t nan = ((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;  // bytes 0x7f and 0xff
  if (nan == 0) return;
  *even |= (nan & 0x00800080u) * (From::kExponent / 0x80u);
  *odd |= (nan >> 8 & 0x00800080u) * (From::kExponent / 0x80u);
}

// Dims 4t, 4t + 2 of 16 of a query, and 4t + 1, 4t + 3.
__device__ inline void load_query(const Bytes& queries, int at, uint32_t* even, uint32_t* odd) {
  const uint2 dims = *reinterpret_cast<const uint2*>(&queries[at]);
  *even = (dims.x & 0xffffu) | dims.y << 16;
  *odd = dims.x >> 16 | (dims.y & 0xffff0000u);
}

template <int kDim, typename Number>
__device__ inline void multiply_keys(const Bytes& queries, const Bytes& keys, float (&scores)[2][4], Number,
                                     Float8) {
  const int lane = lane_of_warp();
  const int key = place_of<kDim / 16>(16 * key_group() + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const int t = lane % 4;
  const int rows[2] = {place_of<kDim / 8>(row_of_lane(0), t / 2) + t % 2 * 8,
                       place_of<kDim / 8>(row_of_lane(1), t / 2) + t % 2 * 8};
#pragma unroll 1
  for (int chunk = 0; chunk < kDim / 16; chunk += 2) {
    uint32_t words[4];  // of keys 0 to 7 both chunks, then of keys 8 to 15
    simt::ldmatrix_x4(words, &keys[key ^ 16 * chunk]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a[4], first[2], second[2];
      load_query(queries, rows[0] ^ 32 * (chunk + i), &a[0], &a[2]);
      load_query(queries, rows[1] ^ 32 * (chunk + i), &a[1], &a[3]);
      widen_bytes<Number>(words[i], &first[0], &first[1]);
      widen_bytes<Number>(words[2 + i], &second[0], &second[1]);
      multiply(scores[0], a, first, Number{});
      multiply(scores[1], a, second, Number{});
    }
  }
}

// Tile 2 d of the output has the even columns of 16 d to 16 d + 15, tile 2 d + 1 the odd ones.
template <int kDim, typename Number>
__device__ inline void multiply_values(const uint32_t (&weights)[4], const Bytes& values, RowSums<kDim>& sums,
                                       Number, Float8) {
  const int lane = lane_of_warp(), key = place_of<kDim / 16>(16 * key_group() + lane % 16, lane / 16);
#pragma unroll
  for (int chunk = 0; chunk < kDim / 16; chunk += 2) {
    uint32_t words[4];  // of a chunk keys 0 to 7 and 8 to 15, then of the next
    simt::ldmatrix_x4_trans(words, &values[key ^ 16 * chunk]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t even[2], odd[2];
      widen_bytes<Number>(words[2 * i], &even[0], &odd[0]);
      widen_bytes<Number>(words[2 * i + 1], &even[1], &odd[1]);
      multiply(sums.out[2 * (chunk + i)], weights, even, Number{});
      multiply(sums.out[2 * (chunk + i) + 1], weights, odd, Number{});
    }
  }
}

template <int kDim>
__device__ inline float2 pair_of(const RowSums<kDim>& sums, int half, int j, Float8) {
  const int even = j / 2 * 2, i = 2 * half + j % 2;
  return make_float2(sums.out[even][i], sums.out[even + 1][i]);
}
__device__ inline int column_of(int j, Float8) { return j / 2 * 16 + lane_of_warp() % 4 * 4 + j % 2 * 2; }

}  // namespace
}  // namespace earnest::attention::paged
