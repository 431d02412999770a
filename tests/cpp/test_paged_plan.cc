// SPDX-License-Identifier: Apache-2.0
// How attention over pages is cut: every key in one piece, every row in one block, parts that do not collide,
// blocks that fit on the chips there are.
#include <algorithm>
#include <cstdint>
#include <set>

#include "kernels/attention/paged_attention.h"
#include "kernels/attention/paged_plan.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest::attention::paged;

constexpr int64_t kPieces[] = {256, 512, 1024, 2048};
constexpr int64_t kSmall = 99 * 1024, kLarge = 227 * 1024;  // compute capability 8.6, 12.0; and 9.0

constexpr int64_t kMany = 1000;  // blocks that there is work for

}  // namespace

TEST(pieces_cover_the_keys_in_order_and_only_the_last_is_short) {
  for (int64_t size : kPieces) {
    const int shift = piece_shift(size);
    CHECK(size == 1 << shift);
    for (int64_t keys : {int64_t{1}, size - 1, size, size + 1, 2 * size, 2 * size + 1, int64_t{65536},
                         (int64_t{1} << 33) + 7}) {
      const int64_t pieces = pieces_of(keys, shift);
      CHECK((pieces - 1) * size < keys && keys <= pieces * size);
      CHECK(keys_of_piece(0, keys, shift) == (keys < size ? keys : size));
      CHECK(keys_of_piece(pieces - 1, keys, shift) == keys - (pieces - 1) * size);
      CHECK(pieces == 1 || keys_of_piece(pieces - 2, keys, shift) == size);
    }
    // Somebody writes the rows of an empty sequence.
    CHECK(pieces_of(0, shift) == 1 && keys_of_piece(0, 0, shift) == 0);
  }
}

TEST(a_longer_sequence_keeps_its_first_pieces) {
  for (int64_t size : kPieces) {
    const int shift = piece_shift(size);
    for (int64_t keys = 1; keys < 3 * size; keys += 7) {
      for (int64_t piece = 0; piece < pieces_of(keys, shift) - 1; ++piece)
        CHECK(keys_of_piece(piece, keys, shift) == keys_of_piece(piece, keys + 1, shift));
    }
  }
}

TEST(a_piece_is_a_number_of_whole_pages_and_at_most_one_for_each_thread) {
  for (int64_t size : kPieces) CHECK(is_piece(size) && size % kMostPage == 0 && size % kTileKeys == 0);
  for (int64_t size : {int64_t{0}, int64_t{-512}, int64_t{100}, int64_t{128}, int64_t{513}, int64_t{4096},
                       int64_t{1} << 30, INT64_MIN, INT64_MAX})
    CHECK(!is_piece(size));
  CHECK(kMostPiece / kLeastPage <= kThreadsOfRowTile);
}

TEST(blocks_take_all_rows) {
  for (int64_t group = 1; group <= kMostGroup; ++group) {
    for (int64_t queries = 1; queries <= kMostQueries; ++queries) {
      const int64_t rows = group * queries, slices = row_slices(rows), of_block = row_tiles(rows) * kRowTile;
      CHECK(of_block <= kMostRowTiles * kRowTile);
      CHECK(slices == 1 ? of_block >= rows : of_block == kMostRowTiles * kRowTile);
      CHECK(slices * kMostRowTiles * kRowTile >= rows && (slices - 1) * kMostRowTiles * kRowTile < rows);
    }
  }
}

TEST(blocks_fit_on_the_smallest_chip_and_several_on_the_largest) {
  for (int dim : {64, 128}) {
    for (int tiles = 1; tiles <= kMostRowTiles; ++tiles) {
      for (int size : {1, 2}) {
        for (int64_t shared : {kSmall, kLarge}) {
          const int stages = stages_of(0, dim, tiles, size, kMany, shared);
          CHECK(kWorkBytes + shared_bytes(dim, tiles, size, stages) <= shared && stages >= 2 && stages <= 4);
          CHECK(resident_blocks(dim, tiles, size, stages, shared) >= 1);
        }
        // What the key groups join lies where tiles and queries were.
        CHECK((sums_floats(dim, tiles) + 2 * group_floats(tiles)) * 4 <= pages_offset(dim, tiles, size, 2));
      }
    }
  }
  CHECK(resident_blocks(128, 1, 2, 2, kLarge) == 3 && resident_blocks(64, 1, 2, 2, kLarge) == 4);
  CHECK(resident_blocks(128, 1, 1, 2, kLarge) == 4 && resident_blocks(128, 4, 2, 2, kLarge) == 1);
}

TEST(more_tiles_are_in_shared_memory_where_that_costs_no_block) {
  CHECK(stages_of(0, 128, 1, 2, kMany, kLarge) == 2 && stages_of(0, 64, 1, 2, kMany, kLarge) == 3);
  CHECK(stages_of(0, 128, 1, 1, kMany, kLarge) == 3 && stages_of(0, 64, 1, 1, kMany, kLarge) == 4);
  CHECK(stages_of(0, 128, 2, 2, kMany, kLarge) == 3 && stages_of(0, 128, 4, 2, kMany, kLarge) == 4);
  CHECK(stages_of(0, 128, 4, 2, kMany, kSmall) == 2 && stages_of(0, 64, 1, 1, kMany, kSmall) == 2);
  CHECK(stages_of(0, 128, 1, 2, 3, kLarge) == 2);  // where there is work for fewer, more tiles are better
  CHECK(stages_of(0, 128, 1, 2, 2, kLarge) == 3 && stages_of(0, 128, 1, 2, 1, kLarge) == 4);
  CHECK(stages_of(0, 128, 1, 2, 1, kSmall) == 2);
  for (int dim : {64, 128}) {
    for (int tiles = 1; tiles <= kMostRowTiles; ++tiles) {
      for (int size : {1, 2}) {
        for (int64_t shared : {kSmall, kLarge}) {
          for (int64_t most : {int64_t{1}, int64_t{2}, int64_t{3}, kMany}) {
            const auto blocks = [&](int stages) {
              return std::min(most, resident_blocks(dim, tiles, size, stages, shared));
            };
            const int stages = stages_of(0, dim, tiles, size, most, shared);
            CHECK(blocks(stages) == blocks(2));
            CHECK(stages == 4 || kWorkBytes + shared_bytes(dim, tiles, size, stages + 1) > shared ||
                  blocks(stages + 1) < blocks(2));
          }
        }
      }
    }
  }
}

TEST(tiles_that_are_asked_for_are_taken_or_refused) {
  for (int asked : {2, 3, 4}) CHECK(stages_of(asked, 128, 1, 2, kMany, kLarge) == asked);
  CHECK(stages_of(2, 128, 4, 2, kMany, kSmall) == 2 && stages_of(3, 128, 4, 2, kMany, kSmall) == 0);
  CHECK(stages_of(4, 128, 1, 2, kMany, kSmall) == 0 && stages_of(4, 64, 1, 2, kMany, kSmall) == 4);
}

TEST(parts_do_not_collide) {
  const int64_t sequences = 3, pieces = 5, queries = 2, heads = 7;
  std::set<int64_t> seen;
  for (int64_t n = 0; n < sequences; ++n)
    for (int64_t piece = 0; piece < pieces; ++piece)
      for (int64_t query = 0; query < queries; ++query)
        for (int64_t head = 0; head < heads; ++head)
          seen.insert(part_row(n, piece, query, head, pieces, queries, heads));
  const int64_t rows = part_rows(sequences, pieces, queries, heads);
  CHECK(static_cast<int64_t>(seen.size()) == rows && *seen.begin() == 0 && *seen.rbegin() == rows - 1);
  CHECK(part_rows(sequences, 1, queries, heads) == 0);
}

TEST(sizes_beyond_two_to_the_31_are_counted) {
  Params p;
  p.device = earnest::Device::kCuda;
  p.sequences = 1 << 16, p.tokens = p.sequences;
  p.heads = 40, p.kv_heads = 8, p.dim = 128, p.page_size = 64;
  p.table_pages = 1 << 14;  // 2^20 keys a sequence, 2048 pieces
  const int64_t rows = (int64_t{1} << 27) * 40;
  CHECK(part_rows(p.sequences, pieces_of(int64_t{1} << 20, piece_shift(512)), 1, 40) == rows);
  CHECK(part_row((1 << 16) - 1, 2047, 0, 39, 2048, 1, 40) == rows - 1);
  CHECK(workspace_size(p) == static_cast<size_t>(rows) * 130 * 4 + 2 * kAlignment);
  p.piece_keys = 2048;
  CHECK(workspace_size(p) == static_cast<size_t>(rows / 4) * 130 * 4 + 2 * kAlignment);
  p.piece_keys = 100;
  CHECK(workspace_size(p) == 0);
  p.piece_keys = 512;
  p.most_queries = int64_t{1} << 61;  // refused, and nothing is asked for
  CHECK(workspace_size(p) == 0);
  p.most_queries = 1, p.device = earnest::Device::kCpu;
  CHECK(workspace_size(p) == 0);
}
