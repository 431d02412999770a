// SPDX-License-Identifier: Apache-2.0
// The rows of one tile: where each lies in q and out, and which keys it sees.
#pragma once

#include "kernels/attention/attention_plan.h"

namespace earnest::attention::gpu {

struct Rows {
  Sequence sequence;
  int64_t kv_head, heads;
  int64_t first_token;  // of the tile's first row, counted from the sequence's first
  int first_member;     // its head in the group
  int group, count;     // count: rows that there are
  bool causal;

  Rows() = default;
  EARNEST_HOST_DEVICE Rows(const Params& p, const Plan& plan, const Tile& tile, int64_t head)
      : sequence(sequence_of(p, tile.sequence)),
        kv_head(head),
        heads(p.heads),
        group(static_cast<int>(plan.group)),
        count(static_cast<int>(rows_in(sequence, plan, tile.block))),
        causal(p.causal) {
    const int64_t first = tile.block * plan.tile_rows;
    first_token = first / plan.group;
    first_member = static_cast<int>(first % plan.group);
  }

  // Which of the rows [tokens_q * heads] of q and out row i of the tile is.
  EARNEST_HOST_DEVICE int64_t line(int i) const {
    const unsigned from_first = static_cast<unsigned>(first_member) + static_cast<unsigned>(i);
    const unsigned members = static_cast<unsigned>(group);
    const int64_t token = sequence.query_begin + first_token + from_first / members;
    return token * heads + kv_head * group + from_first % members;
  }
  // Keys that row i sees, the first so many.
  EARNEST_HOST_DEVICE int seen(int i) const {
    const unsigned from_first = static_cast<unsigned>(first_member) + static_cast<unsigned>(i);
    const int64_t token = first_token + from_first / static_cast<unsigned>(group);
    return static_cast<int>(keys_seen(sequence, token, causal));
  }
  EARNEST_HOST_DEVICE KeyTiles tiles(int64_t keys = kKeys) const {
    return key_tiles(sequence, first_token * group + first_member, count, group, causal, keys);
  }
};

}  // namespace earnest::attention::gpu
