// SPDX-License-Identifier: Apache-2.0
// What one CPU tier offers: rows of x as whole numbers, and the register tile. quantized_cpu.cc walks over a
// problem with it. Plain function pointers keep code for one instruction set from being merged into another's
// by the linker.
#pragma once

#include <cstdint>

#include "kernels/quantized/quantized.h"

namespace earnest::quantized {

// Inputs of a row of x that share a unit: fewer where they have only 8 bits, so that a large one takes the
// bits of fewer others.
constexpr int64_t block_of(int planes) { return planes == 1 ? 64 : 256; }
constexpr int64_t kMostGroups = 256 / kGroup;  // of a block
constexpr int64_t kMostPanels = 8;             // that a tile takes together

inline int64_t groups_of(int64_t inputs) { return (inputs + kGroup - 1) / kGroup; }
inline int64_t blocks_of(int64_t inputs, int planes) {
  return (inputs + block_of(planes) - 1) / block_of(planes);
}

// One block of a row of x: x = unit (256^(planes - 1) plane 0 + ... + plane [planes - 1]). The planes, a byte
// for each input, lie behind this. sums: of the whole numbers over each group.
struct alignas(64) BlockHeader {
  float unit;
  float sums[kMostGroups];  // for int4
  int32_t lower_sum,
      upper_sum;  // -128 times the sum over the block of the two last planes as one, of plane 0 of 3
};
constexpr int64_t block_bytes(int planes) {
  return static_cast<int64_t>(sizeof(BlockHeader)) + planes * block_of(planes);
}

// Several rows times several panels.
struct Tile {
  const char* left;  // rows as `quantise` left them
  int64_t left_stride;
  int64_t inputs;
  int64_t ahead;  // bytes from a panel to the one whose turn comes after it
  const char* panels[kMostPanels];
  int64_t counts[kMostPanels];      // outputs of each that there are
  const void* biases[kMostPanels];  // of each, or null
  void* outputs[kMostPanels];       // of each, in the first row
  int64_t output_stride;
};

struct Kernels {
  int64_t row_tile;            // rows that a tile takes at most
  int64_t panels_of_rows[16];  // panels that a tile of i + 1 rows takes at most
  void (*quantise)(const void* row, int64_t inputs, void* out);
  void (*multiply)(const Tile& tile, int64_t rows, int64_t panels);
};

namespace scalar {
const Kernels& kernels(Type type, Codes codes, Activations activations);
}
namespace avx2 {
const Kernels& kernels(Type type, Codes codes, Activations activations);
}
namespace avx512 {
const Kernels& kernels(Type type, Codes codes, Activations activations);
}
namespace avx512_bf16 {
const Kernels& kernels(Type type, Codes codes, Activations activations);
}

}  // namespace earnest::quantized
