// SPDX-License-Identifier: Apache-2.0
// How keys go in pieces, where Params::most_keys asks for it: pure functions, tested on the CPU.
//
// The split rule: pieces of kPieceKeys keys, counted from the sequence's first key, as on the CPU and over
// pages. It looks at nothing else, so that a row has the same bits in a prompt and in a step of decoding, in
// any batch. Of a sequence of one query each piece is a block's, which leaves sums behind, joined by a second
// kernel; other rows stay with one block for all pieces, which joins them as it goes. Both join alike.
#pragma once

#include "kernels/attention/attention_plan.h"

namespace earnest::attention::gpu {

constexpr int kPieceKeys = 512, kPieceTiles = kPieceKeys / kKeys;
static_assert(kPieceKeys % kKeys == 0);

// Of no keys there is a piece too: somebody writes the rows.
EARNEST_HOST_DEVICE constexpr int64_t pieces_of(int64_t keys) {
  return keys <= kPieceKeys ? 1 : blocks_of(keys, kPieceKeys);
}

// The most that a sequence can have.
inline int64_t most_pieces(const Params& p) {
  return pieces_of(p.most_keys < p.tokens_k ? p.most_keys : p.tokens_k);
}

// Tiles of rows, and behind them the further pieces of each sequence, of each key head.
inline int64_t work_of(const Params& p, const Plan& plan) {
  return (plan.slots + p.sequences * (most_pieces(p) - 1)) * p.kv_heads;
}

// Whether each piece is a block's: the rows of one query are one tile.
EARNEST_HOST_DEVICE inline bool is_split(const Sequence& s, const Plan& plan) {
  return s.queries == 1 && plan.group <= plan.tile_rows;
}

// ---- what pieces leave behind ----

// Where the sums of a piece lie, in rows of all heads: floor(b / 512) + n + ... has room for the pieces of
// every sequence between its first place b and the next one's, whatever the lengths are.
EARNEST_HOST_DEVICE constexpr int64_t part_of(int64_t key_begin, int64_t sequence, int64_t piece) {
  return key_begin / kPieceKeys + sequence + piece;
}
inline int64_t parts_of(const Params& p) {
  return most_pieces(p) == 1 ? 0 : p.tokens_k / kPieceKeys + p.sequences;
}

struct Parts {
  float* outputs = nullptr;  // [parts, heads, dim], not yet divided by the sum of weights
  float* sums = nullptr;     // [parts, heads, 2]: largest score, sum of weights relative to it
};

inline int64_t parts_floats(const Params& p) { return parts_of(p) * p.heads * (p.dim + 2); }
inline Parts parts_at(const Params& p, void* workspace) {
  auto* const outputs = static_cast<float*>(workspace);
  return {outputs, outputs + parts_of(p) * p.heads * p.dim};
}

}  // namespace earnest::attention::gpu
