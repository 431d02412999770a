// SPDX-License-Identifier: Apache-2.0
// How the CUDA back end cuts its work: pure functions of the sizes, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/tile_order.h"

namespace earnest::logprob::gpu {

EARNEST_HOST_DEVICE constexpr int64_t padded(int64_t size, int64_t block) {
  return blocks_of(size, block) * block;
}

// ---- the vocabulary in chunks ----

// Backward holds the gradients of a chunk's logits, [N, columns], between the product that makes them and the
// two that use them. They lie in the workspace or, if grad_weight is wanted, in its rows behind the chunk,
// which are written later: while the vocabulary is mostly ahead, that is room for a large chunk.
struct Chunk {
  int64_t first, columns;
  bool in_gradient;  // the logits' gradients lie in grad_weight
};

// Chunks end at multiples of it: a multiple of every path's step along the depth, so that a sum over the
// vocabulary takes the same steps wherever chunks end. A chunk's bounds depend on the number of rows; no bit
// of a result does.
constexpr int64_t kChunkStep = 256;
constexpr int64_t kAlignment = 128;  // bytes, of arrays in the workspace

// Elements between two rows of the logits' gradients: copies of 16 bytes begin on 16.
EARNEST_HOST_DEVICE constexpr int64_t chunk_pitch(int64_t columns) { return padded(columns, 8); }

struct Sizes {
  int64_t rows, depth, vocabulary;
  int64_t bytes;    // of an element
  int64_t scratch;  // bytes in the workspace
};

// Columns whose gradients fit into the workspace; one step at least.
constexpr int64_t workspace_columns(const Sizes& s) {
  const int64_t fit = s.scratch / (s.rows * s.bytes) / kChunkStep * kChunkStep;
  return std::min(std::max(fit, kChunkStep), s.vocabulary);
}

// The chunk that begins at `first`.
constexpr Chunk chunk_at(int64_t first, const Sizes& s, bool weight_wanted) {
  const int64_t left = s.vocabulary - first;
  const int64_t in_workspace = std::min(workspace_columns(s), left);
  // rows * columns + alignment <= (left - columns) * depth
  const int64_t in_gradient =
      (left * s.depth - kAlignment / s.bytes) / (s.rows + s.depth) / kChunkStep * kChunkStep;
  if (!weight_wanted || in_gradient <= in_workspace) return {first, in_workspace, false};
  return {first, in_gradient, true};
}

}  // namespace earnest::logprob::gpu
