// SPDX-License-Identifier: Apache-2.0
// What one CPU tier offers for one type: moving data into the order of the register tile, and the tile
// itself. linear_cpu.cc walks over a problem with it. Plain function pointers keep code for one instruction
// set from being merged into another's by the linker.
//
// The depth is walked in steps: one number (float32, float64), or a pair of neighbours (bfloat16; an odd
// depth gets a zero at its end). "stride" is the number of elements between two rows of a row-major array.
#pragma once

#include <cstdint>

#include "kernels/linear/linear.h"

namespace earnest::linear {

constexpr int64_t kPanel = 32;       // columns that are packed together: out[step][column]
constexpr int64_t kMostSteps = 256;  // in one chain of multiply-adds

struct TileKernels {
  int64_t row_tile;    // rows that the register tile takes together
  int64_t left_bytes;  // of the left tile

  // One panel: out[step * kPanel + j] = source[j, depth], or source[depth, j] where transposed; 0 for
  // count <= j < kPanel.
  void (*pack_panel)(const void* source, int64_t stride, bool transposed, int64_t count, int64_t depth,
                     void* out);

  // The left tile: up to row_tile rows, a depth of up to kMostSteps. Transposed: rows lie along a row of
  // source.
  void (*load_left)(const void* source, int64_t stride, bool transposed, int64_t rows, int64_t depth,
                    void* tile);

  // sums[row][column] = or += tile times `panels` panels, which lie panel_stride steps apart.
  void (*multiply)(const void* tile, bool transposed, int64_t rows, int64_t steps, const void* right,
                   int64_t panel_stride, int64_t panels, void* sums, int64_t sums_stride, bool add);

  // output[row][column] = sums[row][column] + bias[column], rounded.
  void (*finish)(const void* sums, int64_t sums_stride, int64_t rows, int64_t columns, const void* bias,
                 void* output, int64_t output_stride);

  // sums[column] = or += the sum of up to kMostSteps rows of source.
  void (*sum_rows)(const void* source, int64_t stride, int64_t rows, int64_t columns, void* sums, bool add);
};

namespace scalar {
const TileKernels& kernels(Type type);
}
namespace avx2 {
const TileKernels& kernels(Type type);
}
namespace avx512 {
const TileKernels& kernels(Type type);
}
namespace avx512_bf16 {
const TileKernels& kernels(Type type);
}

}  // namespace earnest::linear
