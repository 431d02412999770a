// SPDX-License-Identifier: Apache-2.0
// How the backward pass on CUDA cuts its work, and how its workspace is laid out: pure functions, as those of
// attention_plan.h, which it builds on.
//
// Two kernels each take tiles of one side of the matrix of scores past all of the other that belongs to them,
// kKeys at a time: tiles of stacked rows past keys give dq, tiles of keys past stacked rows give dk and dv.
// No sum is shared between blocks. Rows that pass are counted from the sequence's first, keys too: that is
// the one rule that bits depend on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/attention_backward_turns.h"
#include "kernels/attention/attention_plan.h"

namespace earnest::attention::gpu {

// What the kernels want to know of a stacked row, made beforehand. With these
//   p = exp2((s - base) * scale * log2(e) - shift)    ds = p * (dp - delta)
// where s and dp are products that have not been scaled. base: the row's lse as a score in float32, which a
// score comes near, so that their difference is exact; shift: what its rounding has left.
struct alignas(16) RowNumbers {
  float base, shift, delta, unused;
};

// Where that of a sequence's stacked row lies on path sm80: those of a tile are neighbours. On sm90a, where
// rows of one head pass, it is [heads, tokens_q].
EARNEST_HOST_DEVICE constexpr int64_t numbers_at(const Params& p, const Sequence& s, int64_t kv_head,
                                                 int64_t row) {
  return (kv_head * p.tokens_q + s.query_begin) * (p.heads / p.kv_heads) + row;
}

// ---- tiles of keys ----

// So many as the sums of dk and dv leave registers for.
EARNEST_HOST_DEVICE constexpr int keys_of_tile(int64_t dim) { return dim == 64 ? 128 : 64; }

// The problem with keys in the place of queries, each a row of its own: tiles of its rows are tiles of keys,
// of all that there is room for, used or not.
inline Params with_keys_as_rows(const Params& p) {
  Params keys = p;
  keys.tokens_q = p.tokens_k, keys.cu_seqlens_q = p.cu_seqlens_k;
  keys.heads = p.kv_heads;
  keys.tile_rows = p.path == CudaPath::kSm90a ? kTileRows : keys_of_tile(p.dim);
  keys.path = CudaPath::kSm80;
  return keys;
}

// The tile of a slot; of each sequence the first keys first, which the most queries see. `keys` and `plan`
// are those of the problem above.
EARNEST_HOST_DEVICE inline Tile key_tile_of(const Params& keys, const Plan& plan, int64_t slot) {
  Tile tile = tile_of(keys, plan, slot);
  if (tile.sequence >= 0)
    tile.block = blocks_of(sequence_of(keys, tile.sequence).queries, plan.tile_rows) - 1 - tile.block;
  return tile;
}

// Stacked rows that see a key of the sequence: those from this one on.
EARNEST_HOST_DEVICE constexpr int64_t first_row_seeing(const Sequence& s, int64_t key, int64_t group,
                                                       bool causal) {
  return causal ? between(0, key + s.queries - s.keys, s.queries) * group : 0;
}

// Tiles of kKeys rows that pass by a tile of keys: [begin, end) of which some row sees some key, and
// [whole_begin, whole_end) that are full of rows that see all keys.
struct RowTiles {
  int64_t begin, end, whole_begin, whole_end;
};
EARNEST_HOST_DEVICE constexpr RowTiles row_tiles(const Sequence& s, int64_t first_key, int64_t tile_keys,
                                                 int64_t group, bool causal) {
  const int64_t used = between(0, s.keys - first_key, tile_keys), rows = s.queries * group;
  if (used == 0) return {0, 0, 0, 0};
  return {first_row_seeing(s, first_key, group, causal) / kKeys, blocks_of(rows, kKeys),
          blocks_of(first_row_seeing(s, first_key + used - 1, group, causal), kKeys), rows / kKeys};
}

EARNEST_HOST_DEVICE inline int class_of_keys(const Params& p, const Plan& plan, const Tile& tile) {
  if (tile.sequence < 0) return 0;
  const RowTiles tiles = row_tiles(sequence_of(p, tile.sequence), tile.block * plan.tile_rows, plan.tile_rows,
                                   p.heads / p.kv_heads, p.causal);
  return class_of(tiles.end - tiles.begin);
}

// ---- the workspace: the rows' numbers, then the lists of tiles that there are ----

struct BackwardPlan {
  Plan rows, keys;                   // path sm90a has no tiles of rows
  size_t row_list, key_list, bytes;  // where the lists begin, and all of it
  TurnPlan turns;                    // of path sm90a
};

// Shared memory of a block whose tile of rows stays: two operands of it, and three of what passes.
constexpr int64_t shared_bytes_of(int64_t tile_rows, int64_t dim) {
  return (2 * tile_rows + 3 * kKeys) * dim * 2 + 1024;
}

// shared_bytes: what a block may have of it. Of 128 rows of dim 128, a GPU of compute capability 8.6 or 8.9
// has too little.
inline BackwardPlan backward_plan_of(const Params& p, int64_t shared_bytes) {
  BackwardPlan plan = {};
  plan.rows = plan_of(p), plan.keys = plan_of(with_keys_as_rows(p));
  if (p.path == CudaPath::kSm90a) plan.rows.ordered = false;
  if (p.path != CudaPath::kSm90a && p.tile_rows == 0 &&
      shared_bytes_of(plan.rows.tile_rows, p.dim) > shared_bytes) {
    Params few = p;
    few.tile_rows = kFewTileRows;
    plan.rows = plan_of(few);
  }
  plan.row_list = static_cast<size_t>(p.tokens_q * p.heads) * sizeof(RowNumbers);
  plan.key_list =
      plan.row_list + (plan.rows.ordered ? static_cast<size_t>(plan.rows.slots) * sizeof(Tile) : 0);
  plan.bytes = plan.key_list + (plan.keys.ordered ? static_cast<size_t>(plan.keys.slots) * sizeof(Tile) : 0);
  if (p.path == CudaPath::kSm90a) {
    plan.turns = turn_plan_of(p, plan.bytes);
    plan.bytes = plan.turns.bytes;
  }
  return plan;
}

}  // namespace earnest::attention::gpu
