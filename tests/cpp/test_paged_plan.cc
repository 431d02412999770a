// SPDX-License-Identifier: Apache-2.0
// How attention over pages is cut: every key in one piece, every row in one block, parts that do not collide,
// blocks that fit on the chips there are.
#include <cstdint>
#include <set>

#include "kernels/attention/paged_attention.h"
#include "kernels/attention/paged_plan.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest::attention::paged;

}  // namespace

TEST(pieces_cover_the_keys_in_order_and_only_the_last_is_short) {
  for (int64_t keys : {int64_t{1}, int64_t{511}, int64_t{512}, int64_t{513}, int64_t{1024}, int64_t{1025},
                       int64_t{65536}, (int64_t{1} << 33) + 7}) {
    const int64_t pieces = pieces_of(keys);
    CHECK((pieces - 1) * kPieceKeys < keys && keys <= pieces * kPieceKeys);
    CHECK(keys_of_piece(0, keys) == (keys < kPieceKeys ? keys : kPieceKeys));
    CHECK(keys_of_piece(pieces - 1, keys) == keys - (pieces - 1) * kPieceKeys);
    CHECK(pieces == 1 || keys_of_piece(pieces - 2, keys) == kPieceKeys);
  }
  CHECK(pieces_of(0) == 1 && keys_of_piece(0, 0) == 0);  // somebody writes the rows of an empty sequence
}

TEST(a_longer_sequence_keeps_its_first_pieces) {
  for (int64_t keys = 1; keys < 3 * kPieceKeys; keys += 7) {
    for (int64_t piece = 0; piece < pieces_of(keys) - 1; ++piece)
      CHECK(keys_of_piece(piece, keys) == keys_of_piece(piece, keys + 1));
  }
}

TEST(a_piece_has_at_most_a_page_for_each_lane) {
  CHECK(kPieceKeys / kLeastPage <= 32 && kPieceKeys % kMostPage == 0);
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
  constexpr int64_t kSmall = 99 * 1024, kLarge = 227 * 1024;  // compute capability 8.6, 12.0; and 9.0
  for (int dim : {64, 128}) {
    for (int tiles = 1; tiles <= kMostRowTiles; ++tiles) {
      for (int size : {1, 2}) {
        for (int64_t shared : {kSmall, kLarge}) {
          const int stages = stages_of(dim, tiles, size, shared);
          CHECK(shared_bytes(dim, tiles, size, stages) <= shared && (stages == 2 || stages == 4));
          CHECK(resident_blocks(dim, tiles, size, shared) >= 1);
        }
        // What the key groups join lies where tiles and queries were.
        CHECK((sums_floats(dim, tiles) + 2 * group_floats(tiles)) * 4 <= shared_bytes(dim, tiles, size, 2));
      }
    }
  }
  CHECK(resident_blocks(128, 1, 2, kLarge) == 3 && resident_blocks(64, 1, 2, kLarge) == 4);
  CHECK(resident_blocks(128, 1, 1, kLarge) == 4 && resident_blocks(128, 4, 2, kLarge) == 1);
  CHECK(stages_of(128, 1, 2, kLarge) == 2 && stages_of(128, 4, 2, kLarge) == 4);
  CHECK(stages_of(128, 4, 2, kSmall) == 2);
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
  CHECK(part_rows(p.sequences, pieces_of(int64_t{1} << 20), 1, 40) == rows);
  CHECK(part_row((1 << 16) - 1, 2047, 0, 39, 2048, 1, 40) == rows - 1);
  CHECK(workspace_size(p) == static_cast<size_t>(rows) * 130 * 4 + 2 * kAlignment);
  p.most_queries = int64_t{1} << 61;  // refused, and nothing is asked for
  CHECK(workspace_size(p) == 0);
  p.most_queries = 1, p.device = earnest::Device::kCpu;
  CHECK(workspace_size(p) == 0);
}
