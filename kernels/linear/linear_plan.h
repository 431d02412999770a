// SPDX-License-Identifier: Apache-2.0
// How the CUDA back end cuts a product: pure functions of its sizes and of the chip, tested on the CPU. No
// bit of a result depends on any of them.
#pragma once

#include <cstdint>

#include "kernels/common/tile_order.h"

namespace earnest::linear::gpu {

// Gives each part blocks of so many columns; returns how many there are.
template <typename Part>
int64_t cut_into_blocks(Part* parts, int count, int64_t columns_of_block) {
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    parts[i].first_block = blocks;
    blocks += blocks_of(parts[i].columns, columns_of_block);
  }
  return blocks;
}

// ---- many rows: tiles of 128 x 128, so that W is read from memory once for each 1024 rows ----

constexpr int kTile = 128;

// ---- few rows ----

// A block takes 8 `halves` rows (a half of the 16 that mma has) by 8 `columns`; each of its 8 warps has a
// ring of `stages` chunks of the depth in shared memory, all but one of which are on their way.
struct Few {
  int halves, columns, stages;
  constexpr int rows_of_block() const { return 8 * halves; }
  constexpr int columns_of_block() const { return 8 * columns; }
  constexpr int64_t shared_bytes() const { return int64_t{4096} * (halves + columns) * stages; }
};
constexpr Few kFewOf8 = {1, 2, 8}, kFewOf16 = {2, 2, 6}, kFewOf32 = {4, 2, 4}, kFewOf64 = {8, 4, 4};

constexpr Few few_plan(int64_t rows, int64_t shared_bytes) {
  if (rows <= 8) return kFewOf8;
  if (rows <= 16) return kFewOf16;
  // More rows meet the same reading of W, where the chip has memory for their rings.
  return rows <= 32 || shared_bytes < kFewOf64.shared_bytes() ? kFewOf32 : kFewOf64;
}

// Whether few rows are the faster way, by reckoning: W is read once up to 64 rows; and up to 256, 64 at a
// time and mostly from the second cache, as long as tiles would leave more than half of the chip without
// work.
constexpr bool is_few(int64_t rows, int64_t columns, int multiprocessors) {
  if (rows <= 64) return true;
  return rows <= 256 && 2 * blocks_of(rows, kTile) * blocks_of(columns, kTile) < multiprocessors;
}

}  // namespace earnest::linear::gpu
