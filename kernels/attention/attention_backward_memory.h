// SPDX-License-Identifier: Apache-2.0
// Path sm90a, backward: what a block is at, and where things lie in its shared memory.
#pragma once

#include "kernels/attention/attention_backward_plan.h"
#include "kernels/attention/attention_unfinite.h"
#include "kernels/attention/attention_warpgroups.h"
#include "kernels/common/hopper_turns.h"

namespace earnest::attention::gpu::sm90a {

using sm80::Columns;

constexpr int kBackwardStages = 2;

//   there, read:         of a place: its bytes are there; eight warps have read it
//   sums, sums_added:    eight warps have written dq; TMA has read it
struct BackwardBarriers {
  Barrier there[kBackwardStages], read[kBackwardStages], sums, sums_added;
};

template <int kDim>
struct BackwardMemory {  // in bytes. An operand is blocks of 64 rows, each of kPanels boxes
  static constexpr int kTokens = tile_tokens(kDim), kHalves = kTokens / kBox, kPanels = kDim / kBox;
  static constexpr int kBlock = kPanels * kBoxBytes, kStays = 2 * kBlock, kPasses = kHalves * kBlock;
  static constexpr int kScores = kHalves * 2 * kBoxBytes, kSums = kTokens * kDim * 4,
                       kOfRow = sizeof(RowNumbers), kNumbers = kTokens * kOfRow;
  static constexpr int kAlignment = 1024;  // of boxes, which dynamic shared memory need not have
  static constexpr int kQ = 2 * kStays, kDs = kQ + kBackwardStages * 2 * kPasses, kDq = kDs + 2 * kScores,
                       kOfRows = kDq + kSums, kBarriers = kOfRows + kBackwardStages * kNumbers;
  static constexpr size_t kBytes = kBarriers + sizeof(BackwardBarriers) + kAlignment;
  static_assert(kBytes <= 227 * 1024);
  Bytes all;
  __device__ BackwardMemory() : all(aligned(simt::dynamic_shared<unsigned char>(0, kBytes))) {}
  static __device__ Bytes aligned(Bytes shared) {
    return shared + (kAlignment - simt::shared_address(shared) % kAlignment) % kAlignment;
  }
  __device__ Bytes k() const { return all; }
  __device__ Bytes v() const { return all + kStays; }
  __device__ Bytes q(int stage) const { return all + (kQ + stage * 2 * kPasses); }
  __device__ Bytes grad_out(int stage) const { return all + (kQ + stage * 2 * kPasses + kPasses); }
  // ds^T of 64 tokens and 64 keys
  __device__ Bytes scores(int turn, int half, int block) const {
    return all + (kDs + turn * kScores + (half * 2 + block) * kBoxBytes);
  }
  __device__ Bytes sums() const { return all + kDq; }
  __device__ Bytes numbers(int stage) const { return all + (kOfRows + stage * kNumbers); }
  __device__ BackwardBarriers& barriers() const {
    return *reinterpret_cast<BackwardBarriers*>(&all[kBarriers]);
  }
};

using BackwardTurn = Round<kBackwardStages>;

// What a block is at. Tokens and keys are counted from the sequence's first, fewer than 2^31 of them.
struct BackwardWork {
  int64_t query_begin, first_line;  // the sequence's first token; the tile's first key, in numbers of k
  int64_t key_pitch;                // from key to key
  int64_t first_turn, turn_pitch;   // of the first head and tile; from head to head
  TokenTiles tiles;
  int sequence, block, first_head, group;
  int queries, tokens;  // of the sequence; of a tile
  int used, room;       // keys of the tile that there are, and that there is room for
  int seeing_from;      // causal: the token, if there is one, that is the first to see the tile's first key
  bool causal;
  BackwardWork() = default;
  __device__ BackwardWork(const Params& p, const Params& keys, const Plan& plan, const Tile& tile,
                          int64_t kv_head) {
    const Sequence of = sequence_of(p, tile.sequence);
    const int64_t first_key = tile.block * kTileRows;
    query_begin = of.query_begin, key_pitch = p.kv_heads * p.dim;
    first_line = (of.key_begin + first_key) * key_pitch + kv_head * p.dim;
    sequence = static_cast<int>(tile.sequence), block = static_cast<int>(tile.block);
    group = static_cast<int>(p.heads / p.kv_heads), first_head = static_cast<int>(kv_head) * group;
    first_turn = turn_at(p, query_begin, sequence, first_head, 0);
    turn_pitch = turns_of_head(p.tokens_q, p.sequences, tile_tokens(p.dim));
    queries = static_cast<int>(of.queries), tokens = tile_tokens(p.dim);
    tiles = token_tiles(of, first_key, tokens, p.causal);
    used = static_cast<int>(between(0, of.keys - first_key, kTileRows));
    room = static_cast<int>(rows_in(sequence_of(keys, tile.sequence), plan, tile.block));
    seeing_from = static_cast<int>(first_key + of.queries - of.keys);
    causal = p.causal;
  }
  __device__ int tokens_in(int tile) const {
    return static_cast<int>(between(0, int64_t{queries} - int64_t{tile} * tokens, tokens));
  }
  __device__ int64_t token(int tile) const { return query_begin + int64_t{tile} * tokens; }
  // Of the tokens from `first`, up to 64, those that see the tile's key i.
  __device__ Columns seeing(int i, int first) const {
    const int count = static_cast<int>(between(0, queries - first, kBox));
    const int from = causal ? static_cast<int>(between(0, int64_t{seeing_from} + i - first, count)) : 0;
    return {i < used ? from : count, count};
  }
  // Of the tile's keys from i, 64, those that a token sees.
  __device__ Columns seen(int token, int i) const {
    const int most = static_cast<int>(between(0, used - i, kBox));
    return {0, causal ? static_cast<int>(between(0, int64_t{token} + 1 - seeing_from - i, most)) : most};
  }
};

}  // namespace earnest::attention::gpu::sm90a
