// SPDX-License-Identifier: Apache-2.0
// The CUDA back end's own paths to a product. Both sum over strands of the depth (common/strands.h), and have
// the same bits.
#pragma once

#include <cstdint>

#include "kernels/common/parts.h"
#include "kernels/common/status.h"

namespace earnest::linear::gpu {

constexpr const char* kOp = "linear";

struct PartOperands {
  const void *right, *bias;  // [columns, depth], [columns] or null
  int64_t columns;
  int64_t first_column;  // in a row of the output
  int64_t first_block;   // of the launch
};
struct Operands {
  const void* left;  // [rows, depth]
  void* output;      // [rows, columns]
  int64_t rows, columns, depth;
  bool wide;         // left and right can be read 16 bytes at a time
  bool wide_output;  // and output be written so
  int count;
  PartOperands parts[kMostParts];
  int64_t column_blocks;  // of the launch
};

// `rows` of at least 1.
template <typename Stored>  // BFloat16, float
Status run_tiles(Operands operands, void* stream);
Status run_few(Operands operands, int64_t shared_bytes, void* stream);  // of bfloat16

}  // namespace earnest::linear::gpu
