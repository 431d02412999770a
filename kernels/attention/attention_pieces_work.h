// SPDX-License-Identifier: Apache-2.0
// Keys in pieces, on the device: what a block takes, how sums of pieces are joined, and how those of one
// query are left behind. Both paths do it alike.
//
// There is work for each tile of rows and, behind all of those, for each further piece of each sequence. A
// sequence of one query has its first piece in its tile's work and the others in theirs; of any other one the
// tile's work is all pieces, one after the other, and theirs is nothing.
#pragma once

#include <cmath>

#include "kernels/attention/attention_pieces.h"
#include "kernels/attention/attention_rows.h"
#include "kernels/attention/attention_softmax.h"

namespace earnest::attention::gpu {

// How sums of earlier pieces and of one more become one: each is scaled to the larger of both scores. From
// nothing the result is the piece itself.
struct Joint {
  float largest, keep, take;
  __device__ Joint(float scale, float before, float of_piece) : largest(fmaxf(before, of_piece)) {
    const float base = largest == -INFINITY ? 0 : largest;
    keep = sm80::exp2_of((before - base) * scale);
    take = sm80::exp2_of((of_piece - base) * scale);
  }
  __device__ float operator()(float before, float of_piece) const {
    return fmaf(before, keep, of_piece * take);
  }
};

struct Work {
  Rows rows;
  int tiles, whole_tiles;  // of kKeys keys: that some row sees, and that all see whole
  int first_piece, end_piece;
  int64_t part;  // of the first; -1: nothing is left behind
};

// False where there is nothing to do. index: below work_of(p, plan), which as all counts here is below 2^31
// (check_slots), so that nobody divides numbers of 64 bits for it.
__device__ inline bool find_work(const Params& p, const Plan& plan, const Tile* order, unsigned index,
                                 Work* work) {
  const auto kv_heads = static_cast<unsigned>(p.kv_heads), sequences = static_cast<unsigned>(p.sequences),
             slots = static_cast<unsigned>(plan.slots);
  const unsigned slot = index / kv_heads, head = index % kv_heads;
  const bool is_first = slot < slots;
  Tile tile = {(slot - slots) % sequences, 0};
  if (is_first) tile = order != nullptr ? order[slot] : tile_of(p, plan, slot);
  if (tile.sequence < 0) return false;
  const Sequence s = sequence_of(p, tile.sequence);
  const bool split = is_split(s, plan);
  if (!is_first && !split) return false;
  const auto piece = static_cast<int>(is_first ? 0 : 1 + (slot - slots) / sequences);
  work->rows = Rows(p, plan, tile, head);
  const KeyTiles tiles = work->rows.tiles();
  const auto pieces = static_cast<int>(pieces_of(tiles.all * kKeys));
  if (piece >= pieces) return false;
  work->tiles = static_cast<int>(tiles.all), work->whole_tiles = static_cast<int>(tiles.whole);
  work->first_piece = piece;
  work->end_piece = split ? piece + 1 : pieces;
  work->part = split && pieces > 1 ? part_of(s.key_begin, tile.sequence, piece) : -1;
  return true;
}

// Joined sums of a warp's strip of rows, the tile's from first_row, of one query: a row for each head of the
// group.
template <int kColumns>
__device__ inline void leave_behind(const Work& work, int first_row, const float (&o)[kColumns][4],
                                    const sm80::RowState (&states)[2], const Parts& parts) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int member = first_row + sm80::strip_row(half);
    if (member >= work.rows.count) continue;
    const int64_t row = work.part * work.rows.heads + work.rows.kv_head * work.rows.group + member;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      *reinterpret_cast<float2*>(parts.outputs + (row * kColumns + j) * 8 + sm80::strip_column()) =
          make_float2(o[j][2 * half], o[j][2 * half + 1]);
    }
    if (sm80::strip_column() == 0)
      *reinterpret_cast<float2*>(parts.sums + 2 * row) = make_float2(states[half].largest, states[half].sum);
  }
}

}  // namespace earnest::attention::gpu
