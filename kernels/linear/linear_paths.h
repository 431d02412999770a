// SPDX-License-Identifier: Apache-2.0
// The CUDA back end's own paths to a product. Both sum over strands of the depth (common/strands.h), and have
// the same bits.
#pragma once

#include <cstdint>

#include "kernels/common/status.h"

namespace earnest::linear::gpu {

constexpr const char* kOp = "linear";

struct Operands {
  const void *left, *right, *bias;  // [rows, depth], [columns, depth], [columns] or null
  void* output;                     // [rows, columns]
  int64_t rows, columns, depth;
  bool wide;         // left and right can be read 16 bytes at a time
  bool wide_output;  // and output and bias written and read so
};

// `rows` of at least 1.
template <typename Stored>  // BFloat16, float
Status run_tiles(const Operands& operands, void* stream);
Status run_few(const Operands& operands, int64_t shared_bytes, void* stream);  // of bfloat16

}  // namespace earnest::linear::gpu
