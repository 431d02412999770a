// SPDX-License-Identifier: Apache-2.0
// How the CUDA back end cuts its work and in which order it is done: pure functions of sizes and bounds,
// tested on the CPU. Bounds come from the device's memory, where nobody has looked at them: whatever they
// say, what is made of them here lies within the arrays.
//
// The query heads of a group are stacked: row = token * group + head in the group. A *tile* is up to 64 or
// 128 rows of one sequence, for one key head; its rows go through the sequence's keys together, kKeys of them
// at a time (by path sm90a's schedule kWide 128), counted from the sequence's first key. That count is the
// one rule that bits depend on.
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/common/host_device.h"

namespace earnest::attention::gpu {

constexpr int kTileRows = 128, kFewTileRows = 64;
// As kTileKeys of the CPU, of which it is independent.
constexpr int kKeys = 64;

EARNEST_HOST_DEVICE constexpr int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}
EARNEST_HOST_DEVICE constexpr int64_t between(int64_t least, int64_t x, int64_t most) {
  return x < least ? least : x > most ? most : x;
}

// ---- sequences ----

struct Range {
  int64_t begin, end;
};
// Tokens of sequence n, within [0, tokens].
EARNEST_HOST_DEVICE inline Range tokens_of(const int32_t* cu_seqlens, int64_t n, int64_t sequences,
                                           int64_t tokens) {
  if (cu_seqlens == nullptr) {
    const int64_t each = tokens / sequences;
    return {n * each, (n + 1) * each};
  }
  const int64_t begin = between(0, cu_seqlens[n], tokens);
  return {begin, between(begin, cu_seqlens[n + 1], tokens)};
}

struct Sequence {
  int64_t query_begin, queries, key_begin, keys;
};
EARNEST_HOST_DEVICE inline Sequence sequence_of(const Params& p, int64_t n) {
  const Range q = tokens_of(p.cu_seqlens_q, n, p.sequences, p.tokens_q);
  const Range k = tokens_of(p.cu_seqlens_k, n, p.sequences, p.tokens_k);
  const int64_t capacity = k.end - k.begin;
  const int64_t most = p.most_keys > 0 && p.most_keys < capacity ? p.most_keys : capacity;
  return {q.begin, q.end - q.begin, k.begin,
          between(0, p.seqused_k == nullptr ? capacity : p.seqused_k[n], most)};
}

// Which bounds of sequence n are not as they must be, the first of them. If no sequence has any, the clamps
// above have changed nothing.
enum class Bounds { kRight, kQueries, kKeys, kUsed };

EARNEST_HOST_DEVICE inline bool are_right(const int32_t* cu_seqlens, int64_t n, int64_t sequences,
                                          int64_t tokens) {
  if (cu_seqlens == nullptr) return true;
  if ((n == 0 && cu_seqlens[0] != 0) || cu_seqlens[n + 1] < cu_seqlens[n]) return false;
  return n + 1 < sequences || cu_seqlens[n + 1] == tokens;
}
EARNEST_HOST_DEVICE inline Bounds wrong_bounds(const Params& p, int64_t n) {
  if (!are_right(p.cu_seqlens_q, n, p.sequences, p.tokens_q)) return Bounds::kQueries;
  if (!are_right(p.cu_seqlens_k, n, p.sequences, p.tokens_k)) return Bounds::kKeys;
  const Range k = tokens_of(p.cu_seqlens_k, n, p.sequences, p.tokens_k);
  const int64_t used = p.seqused_k == nullptr ? k.end - k.begin : p.seqused_k[n];
  return used == sequence_of(p, n).keys ? Bounds::kRight : Bounds::kUsed;
}

// ---- keys ----

// Keys that a query of the sequence sees: the first so many.
EARNEST_HOST_DEVICE constexpr int64_t keys_seen(const Sequence& s, int64_t query, bool causal) {
  return causal ? between(0, query + 1 + s.keys - s.queries, s.keys) : s.keys;
}

// Tiles of `keys` that some row of a tile of rows sees, and how many of them (the first) all rows see whole.
struct KeyTiles {
  int64_t all, whole;
};
EARNEST_HOST_DEVICE constexpr KeyTiles key_tiles(const Sequence& s, int64_t first_row, int64_t rows,
                                                 int64_t group, bool causal, int64_t keys = kKeys) {
  const int64_t first = first_row / group, last = (first_row + rows - 1) / group;
  return {blocks_of(keys_seen(s, last, causal), keys), keys_seen(s, first, causal) / keys};
}

// ---- tiles of rows ----

struct Tile {
  int64_t sequence, block;  // rows from block * tile_rows of the sequence; sequence -1: nothing to do
};

struct Plan {
  int64_t group, tile_rows;
  int64_t slots;  // at least as many as there are tiles, and as there are sequences
  bool ordered;   // tiles are listed by order_tiles first
};

// What path sm90a is predicted to be fastest with (README.md); no GPU has timed any.
constexpr Schedule schedule_of(const Params& p) {
  return p.schedule == Schedule::kBest ? Schedule::kWide : p.schedule;
}

// So few blocks all begin at once, and their order says nothing: a list would only cost its own launch.
constexpr int64_t kAtOnce = 128;

// Short sequences, as of a few new tokens after a long prefix, take small tiles: what has no row is computed
// too.
EARNEST_HOST_DEVICE constexpr int64_t rows_of_tile(int64_t rows, int64_t sequences) {
  return rows <= sequences * kFewTileRows ? kFewTileRows : kTileRows;
}

// Nobody has to count tiles: floor(b / T) + 1 - floor(a / T) slots of T rows hold the b - a rows of a
// sequence, at most one of them in vain.
inline Plan plan_of(const Params& p) {
  Plan plan;
  plan.group = p.heads / p.kv_heads;
  const int64_t rows = p.tokens_q * plan.group;
  plan.tile_rows = p.path == CudaPath::kSm90a ? kTileRows
                   : p.most_keys > 0  ? kFewTileRows  // with joined sums beside: more has no registers
                   : p.tile_rows != 0 ? p.tile_rows
                                      : rows_of_tile(rows, p.sequences);
  const int64_t equal = p.sequences == 0 ? 0 : blocks_of(rows / p.sequences, plan.tile_rows);
  plan.slots =
      p.cu_seqlens_q != nullptr ? rows / plan.tile_rows + p.sequences : p.sequences * (equal > 1 ? equal : 1);
  const bool ragged = p.cu_seqlens_q != nullptr || p.cu_seqlens_k != nullptr || p.seqused_k != nullptr;
  const bool decodes = p.most_keys > 0 && p.tokens_q <= p.sequences;  // blocks of a piece each
  plan.ordered = p.sequences > 1 && ragged && !decodes && plan.slots > kAtOnce / p.kv_heads;
  return plan;
}

EARNEST_HOST_DEVICE inline int64_t slots_before(const Params& p, const Plan& plan, int64_t n) {
  return between(0, p.cu_seqlens_q[n], p.tokens_q) * plan.group / plan.tile_rows + n;
}

// The tile of a slot. Of each sequence the last rows first, which see the most keys; of sequences of equal
// length all last ones first.
EARNEST_HOST_DEVICE inline Tile tile_of(const Params& p, const Plan& plan, int64_t slot) {
  int64_t sequence = 0, from_last = slot;
  if (p.cu_seqlens_q == nullptr) {
    sequence = slot % p.sequences, from_last = slot / p.sequences;
  } else {
    for (int64_t end = p.sequences; end - sequence > 1;) {  // slots_before(sequence) <= slot
      const int64_t middle = (sequence + end) / 2;
      (slots_before(p, plan, middle) <= slot ? sequence : end) = middle;
    }
    from_last -= slots_before(p, plan, sequence);
  }
  const int64_t blocks = blocks_of(sequence_of(p, sequence).queries * plan.group, plan.tile_rows);
  if (from_last < 0 || from_last >= blocks) return {-1, 0};
  return {sequence, blocks - 1 - from_last};
}

// Rows of a tile.
EARNEST_HOST_DEVICE constexpr int64_t rows_in(const Sequence& s, const Plan& plan, int64_t block) {
  return between(0, s.queries * plan.group - block * plan.tile_rows, plan.tile_rows);
}

// ---- their order ----
// The hardware gives the next block to whoever is free, in the order of their numbers: with the longest
// first, all are done at nearly the same time (Graham 1969, "Bounds on multiprocessing timing anomalies").
// Tiles are sorted by classes of length, four to a power of two, by counting (order_tiles in
// attention_cuda.cu); within a class they stay as their slots lie, so that neighbours share keys.

constexpr int kClasses = 64;

// Of so many tiles of keys; the last is of all from 7 * 2^14 on, 7.3 million keys.
EARNEST_HOST_DEVICE constexpr int class_of(int64_t tiles) {
  int power = 0;
  while (tiles >> power >= 8) ++power;
  const auto number = 4 * power + static_cast<int>(tiles >> power);
  return number < kClasses ? number : kClasses - 1;
}

EARNEST_HOST_DEVICE inline int class_of(const Params& p, const Plan& plan, const Tile& tile) {
  if (tile.sequence < 0) return 0;
  const Sequence s = sequence_of(p, tile.sequence);
  return class_of(
      key_tiles(s, tile.block * plan.tile_rows, rows_in(s, plan, tile.block), plan.group, p.causal).all);
}

}  // namespace earnest::attention::gpu
