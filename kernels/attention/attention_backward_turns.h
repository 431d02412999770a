// SPDX-License-Identifier: Apache-2.0
// How the backward pass of path sm90a cuts its work, in which order tiles of keys add to a row's gradient,
// and how its workspace is laid out: pure functions, beside those of attention_backward_plan.h.
//
// A block has a tile of kTileRows keys of one key head; the rows that see it pass by, one query head of the
// group after another, tiles of tile_tokens(dim) tokens counted from the sequence's first, the last ones
// first. What a tile of keys gives to the gradient of a tile of tokens it adds in its turn: the turn of tile
// j is the j-th.
//
// Nobody waits for ever: (1) blocks take tickets, and of a sequence and key head the tickets of first keys
// come first, listed or not; (2) who sees tile j sees tile j - 1 too, which therefore passes every turn that
// tile j waits for; so a block waits only for holders of earlier tickets, which run or are done, and the
// first of all waits for nobody.
#pragma once

#include "kernels/attention/attention_plan.h"

namespace earnest::attention::gpu {

// Tokens that pass at a time: their sums of gradients fill the same shared memory for both head sizes.
EARNEST_HOST_DEVICE constexpr int tile_tokens(int64_t dim) { return dim == 64 ? 128 : 64; }

// The first query of the sequence that sees a key; all after it do.
EARNEST_HOST_DEVICE constexpr int64_t first_query_seeing(const Sequence& s, int64_t key, bool causal) {
  return causal ? between(0, key + s.queries - s.keys, s.queries) : 0;
}

// Tiles of tokens that pass by a tile of keys: [begin, end) of which some see some key, and of them
// [whole_begin, whole_end) that are full of tokens that see all keys of a full tile.
struct TokenTiles {
  int64_t begin, end, whole_begin, whole_end;
};
EARNEST_HOST_DEVICE constexpr TokenTiles token_tiles(const Sequence& s, int64_t first_key, int64_t tokens,
                                                     bool causal) {
  const int64_t used = between(0, s.keys - first_key, kTileRows);
  if (used == 0 || s.queries == 0) return {0, 0, 0, 0};
  const int64_t all_seen = blocks_of(first_query_seeing(s, first_key + used - 1, causal), tokens);
  const int64_t begin = first_query_seeing(s, first_key, causal) / tokens;
  return {begin, blocks_of(s.queries, tokens), all_seen, used == kTileRows ? s.queries / tokens : all_seen};
}

// What passes: of the last tile each query head of the group, then of the one before it.
struct Pass {
  int tile, member;
  EARNEST_HOST_DEVICE explicit constexpr Pass(const TokenTiles& tiles)
      : tile(static_cast<int>(tiles.end) - 1), member(0) {}
  EARNEST_HOST_DEVICE constexpr bool is_left(const TokenTiles& tiles) const { return tile >= tiles.begin; }
  EARNEST_HOST_DEVICE constexpr bool is_whole(const TokenTiles& tiles) const {
    return tile >= tiles.whole_begin && tile < tiles.whole_end;
  }
  EARNEST_HOST_DEVICE constexpr void next(int group) {
    if (++member < group) return;
    member = 0;
    --tile;
  }
};

// ---- turns: of each query head and tile of tokens a count, and one of tickets before them ----

EARNEST_HOST_DEVICE constexpr int64_t turns_of_head(int64_t tokens_q, int64_t sequences, int64_t tokens) {
  return tokens_q / tokens + sequences;
}
// Within those whatever the bounds say; tiles of different sequences differ where bounds are right.
EARNEST_HOST_DEVICE constexpr int64_t turn_at(const Params& p, int64_t query_begin, int64_t sequence,
                                              int64_t head, int64_t tile) {
  const int64_t tokens = tile_tokens(p.dim);
  return head * turns_of_head(p.tokens_q, p.sequences, tokens) + query_begin / tokens + sequence + tile;
}

// ---- sums: [heads, tokens_q, dim] floats, rows of a tile one behind the other ----
// The 16-byte pieces of a token's row change places, so that four rows' equal pieces lie in different banks.
EARNEST_HOST_DEVICE constexpr int place_of_sum(int64_t token, int piece) {
  return piece ^ static_cast<int>(token % 4 * 2);
}

// ---- the workspace behind the rows' numbers ----

struct TurnPlan {
  size_t sums, ticket, bytes;  // where each begins, turns right behind the ticket, and the end
  int64_t counts;              // the ticket and all turns
};
inline TurnPlan turn_plan_of(const Params& p, size_t begin) {
  TurnPlan plan;
  plan.sums = begin;
  plan.ticket = plan.sums + static_cast<size_t>(p.tokens_q * p.heads * p.dim) * sizeof(float);
  plan.counts = 1 + p.heads * turns_of_head(p.tokens_q, p.sequences, tile_tokens(p.dim));
  plan.bytes = plan.ticket + static_cast<size_t>(blocks_of(plan.counts, 4) * 4) * sizeof(uint32_t);
  return plan;
}

}  // namespace earnest::attention::gpu
