// SPDX-License-Identifier: Apache-2.0
// A warp's product of rows and a pair of panels over 32 inputs, codes as they lie in memory: 16 bytes are 4
// outputs by 4 (int8) or 8 (int4) inputs, and lane (g, t) takes those of inputs 8t to 8t + 7 and outputs 4g
// to 4g + 3 of the pair's 32. Output 4g + e is column g of the e-th of four mma's; so the sums that a lane
// holds in all four are 8 outputs that follow each other, from 8t on.
//
//   int8  codes become bfloat16 as they are, -127 to 127, and are summed over a strand; the scale comes last.
//   int4  code q becomes 16 + q, which takes two instructions for two of them, and is summed over the 32
//         inputs of its group; with X = the sum of x there, which mma makes too,
//           sum_k x (scale q + minimum) = scale sum_k x (16 + q) + (minimum - 16 scale) X
#pragma once

#include "kernels/common/pieces.h"
#include "kernels/quantized/quantized_paths.h"

namespace earnest::quantized::gpu {

constexpr int kGroupBytes = kPanel * 4 + 256;  // of int4: 16 scales and minima, and 4 runs of codes

// Pieces of codes, of 8 or 4 bits, that a lane takes of 32 inputs.
template <int kBits>
constexpr int kCodePieces = kBits == 8 ? 2 : 1;

// Where piece i of the calling lane lies in its panel, from input k (a multiple of 32) on.
template <int kBits>
__device__ inline int64_t code_offset(int64_t k, int i) {
  const int lane = static_cast<int>(threadIdx.x) % 32, slot = lane / 4 % 4 * kPieceBytes, t = lane % 4;
  if (kBits == 8) return 64 + (k / 4 + 2 * t + i) * 64 + slot;
  return k / kGroup * kGroupBytes + 64 + t * 64 + slot;
}
__device__ inline int panel_of_lane() { return static_cast<int>(threadIdx.x) % 32 / 16; }

using PairSums = float[4][4];  // [e] as mma has them: rows g and g + 8, outputs 8t + e and 8t + 4 + e

// b of the half's four products.
__device__ inline void unpack_int8(uint32_t word, uint32_t (&b)[2]) {
  float q[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)  // 2^23 + code, in the last bits of a float
    q[i] = __uint_as_float(0x4b000000u | (word >> (8 * i) & 0xffu)) - 8388736.0f;
  b[0] = simt::pack_bfloat16(q[0], q[1]);
  b[1] = simt::pack_bfloat16(q[2], q[3]);
}
// Inputs 0 and 2, 1 and 3 of the lower (0) or upper (1) halves of bytes; 16 + q is bits of q in the mantissa.
__device__ inline void unpack_int4(uint32_t word, int half, uint32_t (&b)[2]) {
  constexpr uint32_t kMask = 0x00780078u, kSixteen = 0x41804180u;
  const uint32_t even = half == 0 ? word << 3 : word >> 1, odd = half == 0 ? word >> 5 : word >> 9;
  b[0] = (even & kMask) | kSixteen;
  b[1] = (odd & kMask) | kSixteen;
}

template <int kBits>
struct CodeFragments {
  uint32_t b[2][4][2];  // [half][e]

  __device__ explicit CodeFragments(const Piece (&pieces)[kCodePieces<kBits>]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (kBits == 8) {
          unpack_int8(pieces[half].word[e], b[half][e]);
        } else {
          unpack_int4(pieces[0].word[e], half, b[half][e]);
        }
      }
    }
  }
};

// a of a half: rows g and g + 8, in the order in which the codes' inputs stand.
template <int kBits>
__device__ inline void left_fragment(const Piece (&left)[2], int half, uint32_t (&a)[4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint32_t first = left[row].word[2 * half], second = left[row].word[2 * half + 1];
    if constexpr (kBits == 8) {
      a[row] = first;
      a[row + 2] = second;
    } else {
      a[row] = (first & 0xffffu) | second << 16;
      a[row + 2] = first >> 16 | (second & 0xffff0000u);
    }
  }
}

// Of 8 outputs that follow each other.
struct Affine {
  float scale[8], offset[8];

  // From where the lane's 8 words (scale, minimum) lie, on 16 bytes as all pieces do.
  __device__ void load(const Bytes& from, int byte) {
    const Piece pieces[2] = {piece_at(from, byte), piece_at(from, byte + kPieceBytes)};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = pieces[i / 4].word[i % 4];
      scale[i] = __uint_as_float(word << 16);
      offset[i] = fmaf(-16.0f, scale[i], __uint_as_float(word & 0xffff0000u));
    }
  }
};

// sums += left codes over 32 inputs.
template <int kBits>
__device__ inline void multiply(const Piece (&left)[2], const CodeFragments<kBits>& codes,
                                [[maybe_unused]] const Affine& affine, PairSums& sums) {
  if constexpr (kBits == 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      left_fragment<kBits>(left, half, a);
#pragma unroll
      for (int e = 0; e < 4; ++e) simt::mma_16x8x16(sums[e], a, codes.b[half][e]);
    }
  } else {
    const uint32_t ones[2] = {0x3f803f80u, 0x3f803f80u};
    PairSums group = {};
    float of_x[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      left_fragment<kBits>(left, half, a);
#pragma unroll
      for (int e = 0; e < 4; ++e) simt::mma_16x8x16(group[e], a, codes.b[half][e]);
      simt::mma_16x8x16(of_x, a, ones);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int output = i % 2 * 4 + e;
        sums[e][i] =
            fmaf(affine.scale[output], group[e][i], fmaf(affine.offset[output], of_x[i / 2 * 2], sums[e][i]));
      }
    }
  }
}

// ---- results ----

// One number of the result: `sum` of all strands. The same arithmetic wherever it is called.
template <int kBits>
__device__ inline void store(const Job& job, const PartJob& part, int64_t row, int64_t output, float sum) {
  float scale = 1, bias = 0;
  if (kBits == 8)
    memcpy(&scale, part.packed + output / kPanel * job.panel_bytes + output % kPanel * 4, sizeof scale);
  const int64_t to = row * job.outputs + part.first_output + output;
  if (job.float32) {
    if (part.bias != nullptr) bias = static_cast<const float*>(part.bias)[output];
    static_cast<float*>(job.output)[to] = fmaf(sum, scale, bias);
    return;
  }
  if (part.bias != nullptr) bias = widen(static_cast<const BFloat16*>(part.bias)[output]);
  narrow(fmaf(sum, scale, bias), &static_cast<BFloat16*>(job.output)[to]);
}

}  // namespace earnest::quantized::gpu
