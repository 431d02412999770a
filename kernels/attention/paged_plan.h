// SPDX-License-Identifier: Apache-2.0
// How attention over a paged cache is cut: pure functions of the sizes, tested on the CPU.
//
// The split rule: pieces of 2^piece_shift keys, counted from the sequence's first key. It looks at nothing
// else, so that a row's sums take the same steps whatever the batch, the number of queries, and the chip are.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_attention.h"
#include "kernels/common/host_device.h"

namespace earnest::attention::paged {

constexpr int kTileKeys = 64;     // that arrive together in shared memory
constexpr int kKeyGroups = 4;     // warps that share a tile's keys: 16 each, with sums of their own
constexpr int kRowTile = 16;      // rows of a warp: what mma.sync takes
constexpr int kMostRowTiles = 4;  // of a block, which share what is loaded
constexpr int kThreadsOfRowTile = 32 * kKeyGroups;
constexpr int kMostThreads = kMostRowTiles * kThreadsOfRowTile;
constexpr int kMostRegisters = 128;    // a thread's, so that the largest block fits
constexpr int64_t kRegisters = 65536;  // of a multiprocessor
static_assert(kTileKeys == 16 * kKeyGroups && kLeastPiece % kTileKeys == 0);

EARNEST_HOST_DEVICE constexpr int64_t blocks_of(int64_t size, int64_t block) {
  return size / block + (size % block != 0);
}

constexpr bool is_piece(int64_t keys) {
  return keys >= kLeastPiece && keys <= kMostPiece && std::has_single_bit(static_cast<uint64_t>(keys));
}
constexpr int piece_shift(int64_t piece_keys) { return std::countr_zero(static_cast<uint64_t>(piece_keys)); }

// A sequence of no keys has a piece too: somebody writes its rows.
EARNEST_HOST_DEVICE constexpr int64_t pieces_of(int64_t keys, int piece_shift) {
  return keys <= 1 << piece_shift ? 1 : ((keys - 1) >> piece_shift) + 1;
}
EARNEST_HOST_DEVICE constexpr int keys_of_piece(int64_t piece, int64_t keys, int piece_shift) {
  const int64_t left = keys - (piece << piece_shift), most = 1 << piece_shift;
  return static_cast<int>(left < most ? left : most);
}

// A thread looks at a page of the piece: the smallest block has one for each.
constexpr int kMostPiecePages = kMostPiece / kLeastPage;
static_assert(kMostPiecePages <= kThreadsOfRowTile && kLeastPiece % kMostPage == 0);

// Rows: the query heads of a key head, times the queries of the sequence; row = query * group + head.
constexpr int row_tiles(int64_t rows) {
  return static_cast<int>(std::min<int64_t>(blocks_of(rows, kRowTile), kMostRowTiles));
}
// Blocks that read the same keys, where there are more rows than one block takes.
constexpr int64_t row_slices(int64_t rows) { return blocks_of(rows, kMostRowTiles * kRowTile); }

// ---- shared memory: the stages, each keys and then values, behind them the queries, and the pages ----

// size: bytes of a number in the cache, 2 or 1.
EARNEST_HOST_DEVICE constexpr int tile_bytes(int dim, int size) { return kTileKeys * dim * size; }
EARNEST_HOST_DEVICE constexpr int queries_offset(int dim, int size, int stages) {
  return stages * 2 * tile_bytes(dim, size);
}
EARNEST_HOST_DEVICE constexpr int pages_offset(int dim, int row_tiles, int size, int stages) {
  return queries_offset(dim, size, stages) + row_tiles * kRowTile * dim * 2;
}
EARNEST_HOST_DEVICE constexpr int shared_bytes(int dim, int row_tiles, int size, int stages) {
  return pages_offset(dim, row_tiles, size, stages) + kMostPiecePages * static_cast<int>(sizeof(int32_t));
}
// When a piece is done all of it holds sums [row_tiles, 16, dim], then highest scores and totals of
// each key group [4, rows].
EARNEST_HOST_DEVICE constexpr int sums_floats(int dim, int row_tiles) { return row_tiles * kRowTile * dim; }
EARNEST_HOST_DEVICE constexpr int group_floats(int row_tiles) { return kKeyGroups * row_tiles * kRowTile; }

// And as static shared memory what a block is at: as much as the rest is aligned to.
constexpr int kWorkBytes = 1024;

// Blocks that a multiprocessor holds at a time. More would wait; fewer would leave memory idle.
constexpr int64_t resident_blocks(int dim, int row_tiles, int size, int stages, int64_t shared_of_block) {
  constexpr int64_t kReserved = 1024,
                    kThreads = 2048;  // all of a multiprocessor's is a block's and the system's
  const int64_t threads = row_tiles * kThreadsOfRowTile;
  const int64_t of_block = kWorkBytes + shared_bytes(dim, row_tiles, size, stages) + kReserved;
  const int64_t by_memory = (shared_of_block + kReserved) / of_block;
  const int64_t fit = std::min({by_memory, kRegisters / (threads * kMostRegisters), kThreads / threads});
  return std::max<int64_t>(fit, 1);
}

// Tiles in shared memory: those that are asked for, or as many as cost no block of those that two let in and
// that there is work for: so many as `most_blocks` on a multiprocessor. No bit depends on it. 0: those that
// are asked for do not fit.
constexpr int stages_of(int asked, int dim, int row_tiles, int size, int64_t most_blocks,
                        int64_t shared_of_block) {
  const auto fit = [&](int stages) {
    return kWorkBytes + shared_bytes(dim, row_tiles, size, stages) <= shared_of_block;
  };
  const auto blocks = [&](int stages) {
    return std::min(most_blocks, resident_blocks(dim, row_tiles, size, stages, shared_of_block));
  };
  if (asked != 0) return fit(asked) ? asked : 0;
  int stages = kLeastStages;
  while (stages < kMostStages && fit(stages + 1) && blocks(stages + 1) == blocks(kLeastStages)) ++stages;
  return stages;
}

// ---- what pieces leave behind, and who joins it ----

// The row of the workspace for one piece, query of the sequence, and head.
EARNEST_HOST_DEVICE constexpr int64_t part_row(int64_t sequence, int64_t piece, int64_t query, int64_t head,
                                               int64_t most_pieces, int64_t queries, int64_t heads) {
  return ((sequence * most_pieces + piece) * queries + query) * heads + head;
}

constexpr int kJoinWarps = 8;  // of a block, which joins one row: warp w takes pieces w, w + 8, ...
constexpr int kJoinThreads = 32 * kJoinWarps;

constexpr size_t kAlignment = 128;  // bytes, of arrays in the workspace

// Rows of the workspace; none where no sequence can have two pieces.
constexpr int64_t part_rows(int64_t sequences, int64_t most_pieces, int64_t queries, int64_t heads) {
  return most_pieces == 1 ? 0 : sequences * most_pieces * queries * heads;
}
constexpr size_t workspace_bytes(int64_t rows, int64_t dim) {
  return rows == 0
             ? 0
             : static_cast<size_t>(rows) * static_cast<size_t>(dim + 2) * sizeof(float) + 2 * kAlignment;
}

}  // namespace earnest::attention::paged
