// SPDX-License-Identifier: Apache-2.0
// How bfloat16 operands of wgmma lie in shared memory. TMA brings them in boxes: 64 lines of 128 bytes (64
// numbers), with the swizzle CU_TENSOR_MAP_SWIZZLE_128B: the 16-byte piece j of line i lies in the place of
// piece j ^ (i % 8). Shared memory's own address decides, hence a box begins on 1024 bytes. In a line's 128
// bytes lie
//   64 steps along the depth of one row, and a line is a row        (the operand as it is: "K-major")
//   64 rows of one step along the depth, and a line is a step       (the operand transposed: "MN-major")
// so 64 rows by 64 steps are one box either way, and operands of more rows are boxes one behind the other.
//
// The instruction finds its numbers by a descriptor (PTX ISA, "matrix descriptor" and "canonical layouts" of
// wgmma.mma_async). With the 128-byte swizzle, and before it is applied to the address,
//   K-major:   row r, step k   at   start + r % 8 * 128 + r / 8 * stride + 2 k
//   MN-major:  row r, step k   at   start + r / 64 * leading + r % 64 * 2 + k / 8 * stride + k % 8 * 128
// In both, eight lines (1024 bytes) further stands what is eight rows, or eight steps, further: stride =
// 1024. Rows 64 further (MN-major) stand in the next box: leading = 8192. K-major has no use for it. Sixteen
// steps further begin 32 bytes further in the line, or sixteen lines further. tests/cpp/test_hopper_layout.cc
// compares the two views.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest::hopper {

constexpr int kBox = 64;  // rows, and steps along the depth
constexpr int kLineBytes = 128;
constexpr int kBoxBytes = kBox * kLineBytes;
constexpr int kStep = 16;  // of one instruction along the depth

// From the start of an operand, the start of the descriptor for rows from `row` (a multiple of 64) and steps
// from `k` (a multiple of 16, below 64).
EARNEST_HOST_DEVICE constexpr uint32_t operand_offset(bool transposed, int row, int k) {
  const int within = transposed ? k * kLineBytes : k * 2;
  return static_cast<uint32_t>(row / kBox * kBoxBytes + within);
}

// Bits 0-13 start, 16-29 leading, 32-45 stride, each in units of 16 bytes; 49-51 base offset, 0 for boxes on
// multiples of 1024; 62-63 the swizzle, 1 for 128 bytes.
EARNEST_HOST_DEVICE constexpr uint64_t descriptor(uint32_t start) {
  constexpr uint64_t kLeading = kBoxBytes, kStride = 8 * kLineBytes;
  return uint64_t{1} << 62 | kStride >> 4 << 32 | kLeading >> 4 << 16 | (start >> 4 & 0x3fff);
}

}  // namespace earnest::hopper
