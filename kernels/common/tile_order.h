// SPDX-License-Identifier: Apache-2.0
// The order in which the blocks of a grid take the tiles of a product.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest {

EARNEST_HOST_DEVICE constexpr int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// A block of rows and a block of columns.
struct TilePlace {
  int64_t row, column;
};

// Tiles that run at the same time should share what they read: so many blocks of rows go through all columns
// together before the next begin, and each block of columns is read from memory once for all of them. (2048
// rows of 3584 bfloat16 are 14.7 MB, which stay in a Hopper's second cache.)
constexpr int64_t kRowBlocksTogether = 8;
EARNEST_HOST_DEVICE constexpr TilePlace tile_at(int64_t index, int64_t row_blocks, int64_t column_blocks) {
  const int64_t first = index / (kRowBlocksTogether * column_blocks) * kRowBlocksTogether;
  const int64_t rows = row_blocks - first < kRowBlocksTogether ? row_blocks - first : kRowBlocksTogether;
  const int64_t within = index - first * column_blocks;
  return {first + within % rows, within / rows};
}

}  // namespace earnest
