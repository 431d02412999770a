// SPDX-License-Identifier: Apache-2.0
// How the CUDA back end of attention cuts its work: every row in one tile, every key that is seen in its
// tiles, the longest tiles first; whatever bounds say, nothing outside of the arrays.
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "kernels/attention/attention_backward_plan.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/attention/attention_rows.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest;
using namespace earnest::attention;
using namespace earnest::attention::gpu;

struct Case {
  std::vector<int32_t> cu_q, cu_k, used;
  Params p;

  Case(const std::vector<int>& queries, const std::vector<int>& keys, int64_t heads, int64_t kv_heads,
       bool causal)
      : cu_q(bounds(queries)), cu_k(bounds(keys)) {
    p.sequences = static_cast<int64_t>(queries.size());
    p.tokens_q = cu_q.back(), p.tokens_k = cu_k.back();
    p.heads = heads, p.kv_heads = kv_heads, p.dim = 64, p.causal = causal;
    p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
  }
  static std::vector<int32_t> bounds(const std::vector<int>& lengths) {
    std::vector<int32_t> result{0};
    for (int length : lengths) result.push_back(result.back() + length);
    return result;
  }
};

std::vector<int> random_lengths(std::mt19937& random, int count, unsigned most) {
  std::vector<int> lengths;
  for (int i = 0; i < count; ++i) lengths.push_back(static_cast<int>(random() % (most + 1)));
  return lengths;
}

// Rows of each sequence that the slots' tiles hold, and how often.
void check_every_row_is_in_one_tile(const Params& p) {
  const Plan plan = plan_of(p);
  CHECK(plan.slots >= p.sequences);
  std::map<std::pair<int64_t, int64_t>, int> seen;
  for (int64_t slot = 0; slot < plan.slots; ++slot) {
    const Tile tile = tile_of(p, plan, slot);
    if (tile.sequence >= 0) ++seen[{tile.sequence, tile.block}];
  }
  int64_t tiles = 0;
  for (int64_t n = 0; n < p.sequences; ++n) {
    const Sequence s = sequence_of(p, n);
    int64_t rows = 0;
    for (int64_t block = 0; rows < s.queries * plan.group; ++block, ++tiles) {
      CHECK((seen[{n, block}] == 1));
      CHECK(rows_in(s, plan, block) > 0);
      rows += rows_in(s, plan, block);
    }
    CHECK(rows == s.queries * plan.group);
  }
  CHECK(static_cast<int64_t>(seen.size()) == tiles);
}

}  // namespace

TEST(every_row_is_in_one_tile) {
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 60; ++repeat) {
    for (int64_t group : {1, 7, 10}) {
      const auto queries = random_lengths(random, 1 + repeat % 9, repeat % 3 == 0 ? 3 : 200);
      Case one(queries, queries, 2 * group, 2, true);
      check_every_row_is_in_one_tile(one.p);
      for (int tile_rows : {kFewTileRows, kTileRows}) {
        one.p.tile_rows = tile_rows;
        check_every_row_is_in_one_tile(one.p);
      }
    }
  }
  Params equal = Case({65, 65, 65}, {70, 70, 70}, 14, 2, true).p;
  equal.cu_seqlens_q = equal.cu_seqlens_k = nullptr;
  check_every_row_is_in_one_tile(equal);
}

// Keys of each sequence, used or not, that the slots' tiles hold; of each sequence the first keys first.
TEST(every_key_is_in_one_tile) {
  std::mt19937 random(4);
  for (int repeat = 0; repeat < 60; ++repeat) {
    const auto lengths = random_lengths(random, 1 + repeat % 9, repeat % 3 == 0 ? 3 : 400);
    Case one(lengths, lengths, 14, 2, true);
    one.p.dim = repeat % 2 == 0 ? 64 : 128;
    one.used.assign(lengths.size(), 0);
    one.p.seqused_k = one.used.data();
    const Params keys = with_keys_as_rows(one.p);
    const Plan plan = plan_of(keys);
    CHECK(plan.tile_rows == (one.p.dim == 64 ? 128 : 64));
    std::map<int64_t, int64_t> next;  // block of each sequence
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const Tile tile = key_tile_of(keys, plan, slot);
      if (tile.sequence >= 0) CHECK(tile.block == next[tile.sequence]++);
    }
    for (size_t n = 0; n < lengths.size(); ++n)
      CHECK(next[static_cast<int64_t>(n)] == blocks_of(lengths[n], plan.tile_rows));
  }
  Params equal = Case({65, 65}, {70, 70}, 14, 2, true).p;
  equal.cu_seqlens_q = equal.cu_seqlens_k = nullptr;
  const Params keys = with_keys_as_rows(equal);
  const Plan plan = plan_of(keys);
  CHECK(plan.slots == 2 && !plan.ordered);
  for (int64_t slot = 0; slot < 2; ++slot) {
    const Tile tile = key_tile_of(keys, plan, slot);
    CHECK(tile.sequence == slot && tile.block == 0);
  }
}

TEST(tiles_of_rows_are_those_that_see_keys) {
  std::mt19937 random(5);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const auto below = [&](int64_t most) { return static_cast<int64_t>(random()) % most; };
    const int64_t group = 1 + below(9);
    const Sequence s = {0, below(60), 0, below(300)};
    const bool causal = repeat % 2 == 0;
    const int64_t first = below(5) * 64, size = repeat % 3 == 0 ? 64 : 128;
    const RowTiles tiles = row_tiles(s, first, size, group, causal);
    CHECK(tiles.begin >= 0 && tiles.end <= blocks_of(s.queries * group, kKeys));
    for (int64_t tile = 0; tile < blocks_of(s.queries * group, kKeys); ++tile) {
      bool some = false, all = true;  // as the contract says it
      for (int64_t row = tile * kKeys; row < (tile + 1) * kKeys; ++row) {
        for (int64_t j = first; j < first + size && j < s.keys; ++j) {
          const bool sees = row < s.queries * group && (!causal || j <= row / group + (s.keys - s.queries));
          if (sees) CHECK(row >= first_row_seeing(s, j, group, causal));
          if (!sees && row < s.queries * group) CHECK(row < first_row_seeing(s, j, group, causal));
          some |= sees, all &= sees;
        }
      }
      CHECK(some == (tile >= tiles.begin && tile < tiles.end));
      if (some) CHECK(all == (tile >= tiles.whole_begin && tile < tiles.whole_end));
    }
  }
}

TEST(numbers_of_a_tile_are_neighbours_and_each_row_has_a_place) {
  const Case one({5, 40, 0, 7}, {9, 50, 3, 7}, 28, 4, true);
  std::vector<int> taken(45 * 28 + 7 * 28);
  for (int64_t n = 0; n < one.p.sequences; ++n) {
    const Sequence s = sequence_of(one.p, n);
    for (int64_t head = 0; head < 4; ++head) {
      for (int64_t row = 0; row < s.queries * 7; ++row) {
        CHECK(numbers_at(one.p, s, head, row) == numbers_at(one.p, s, head, 0) + row);
        ++taken[static_cast<size_t>(numbers_at(one.p, s, head, row))];
      }
    }
  }
  for (int count : taken) CHECK(count == 1);
}

TEST(the_workspace_holds_numbers_and_the_lists_that_there_are) {
  const std::vector<int> many(64, 70);
  Case one(many, many, 4, 2, true);
  const BackwardPlan plan = backward_plan_of(one.p, 99 << 10);
  CHECK(plan.rows.ordered && plan.keys.ordered);
  CHECK(plan.row_list == 64 * 70 * 4 * sizeof(RowNumbers));
  CHECK(plan.key_list == plan.row_list + static_cast<size_t>(plan.rows.slots) * sizeof(Tile));
  CHECK(plan.bytes == plan.key_list + static_cast<size_t>(plan.keys.slots) * sizeof(Tile));
  const BackwardPlan alone = backward_plan_of(Case({70}, {70}, 4, 2, true).p, 99 << 10);
  CHECK(alone.bytes == 70 * 4 * sizeof(RowNumbers));
}

TEST(rows_that_stay_are_as_many_as_shared_memory_holds) {
  const auto rows = [](int64_t dim, int64_t shared_bytes, int asked) {
    const Case one({700}, {700}, 2, 2, true);
    Params p = one.p;
    p.dim = dim, p.tile_rows = asked;
    return backward_plan_of(p, shared_bytes).rows.tile_rows;
  };
  CHECK(rows(128, 227 << 10, 0) == 128 && rows(128, 163 << 10, 0) == 128 && rows(128, 99 << 10, 0) == 64);
  CHECK(rows(64, 99 << 10, 0) == 128);
  CHECK(rows(128, 99 << 10, 128) == 128 && rows(128, 227 << 10, 64) == 64);  // who asks gets it, or an error
}

TEST(tiles_of_keys_are_those_that_rows_see) {
  std::mt19937 random(2);
  for (int repeat = 0; repeat < 300; ++repeat) {
    const auto below = [&](int64_t most) { return static_cast<int64_t>(random()) % most; };
    const int64_t group = 1 + below(9);
    const Sequence s = {0, 1 + below(300), 0, below(300)};
    const bool causal = repeat % 2 == 0;
    const int64_t all_rows = s.queries * group, first = below(all_rows);
    const int64_t rows = 1 + below(all_rows - first);
    int64_t most = 0, least = s.keys;
    for (int64_t row = first; row < first + rows; ++row) {
      int64_t sees = 0;  // as the contract says it
      for (int64_t j = 0; j < s.keys; ++j) sees += !causal || j <= row / group + (s.keys - s.queries);
      CHECK(keys_seen(s, row / group, causal) == sees);
      most = sees > most ? sees : most, least = sees < least ? sees : least;
    }
    for (const int64_t keys : {int64_t{kKeys}, int64_t{128}}) {
      const KeyTiles tiles = key_tiles(s, first, rows, group, causal, keys);
      CHECK(tiles.all * keys >= most && (tiles.all - 1) * keys < most);
      CHECK(tiles.whole * keys <= least && (tiles.whole + 1) * keys > least);
    }
  }
}

TEST(rows_lie_where_their_token_and_head_do) {
  const Case one({5, 40}, {9, 50}, 28, 4, true);
  const Plan plan = plan_of(one.p);
  for (int64_t block = 0; block * plan.tile_rows < 40 * 7; ++block) {
    const Rows rows(one.p, plan, {1, block}, 2);
    for (int i = 0; i < rows.count; ++i) {
      const int64_t row = block * plan.tile_rows + i, token = row / 7;
      CHECK(rows.line(i) == (5 + token) * 28 + 2 * 7 + row % 7);
      CHECK(rows.seen(i) == token + 1 + 10);
    }
  }
}

TEST(classes_rise_with_length_and_differ_by_a_quarter_at_most) {
  int before = 0;
  for (int64_t tiles = 0; tiles < 7 << 14; ++tiles) {
    const int now = class_of(tiles);
    CHECK(now >= before && now < kClasses);
    if (tiles > 0 && now != before) CHECK(class_of(tiles * 5 / 4 + 1) > now);
    before = now;
  }
  CHECK(class_of(std::numeric_limits<int64_t>::max() / 64) == kClasses - 1);
}

TEST(the_last_rows_of_a_sequence_come_first) {
  Params p = Case({300, 300}, {300, 300}, 1, 1, true).p;
  p.cu_seqlens_q = p.cu_seqlens_k = nullptr;
  const Plan plan = plan_of(p);
  CHECK(!plan.ordered && plan.slots == 6);
  for (int64_t slot = 0; slot < 6; ++slot) {
    const Tile tile = tile_of(p, plan, slot);
    CHECK(tile.sequence == slot % 2 && tile.block == 2 - slot / 2);
  }
  Case one({300}, {300}, 1, 1, true);
  const Plan alone = plan_of(one.p);
  CHECK(!alone.ordered && tile_of(one.p, alone, 0).block == 2 && tile_of(one.p, alone, 2).block == 0);
}

TEST(a_list_is_made_of_many_tiles_of_different_length) {
  const std::vector<int> many(64, 70), few(31, 70);
  CHECK(plan_of(Case(many, many, 2, 2, true).p).ordered);
  CHECK(!plan_of(Case(few, few, 2, 2, true).p).ordered);
  Params p = Case(many, many, 4, 4, true).p;
  p.cu_seqlens_q = p.cu_seqlens_k = nullptr;
  CHECK(!plan_of(p).ordered);
  CHECK(!plan_of(Case({70000}, {70000}, 4, 4, true).p).ordered);
}

TEST(path_sm90a_takes_the_schedule_that_is_named) {
  Params p;
  CHECK(schedule_of(p) == Schedule::kWide);
  for (const Schedule named : {Schedule::kSeries, Schedule::kTurns, Schedule::kAhead, Schedule::kBoth}) {
    p.schedule = named;
    CHECK(schedule_of(p) == named);
  }
}

TEST(few_rows_take_small_tiles) {
  CHECK(plan_of(Case({1, 1}, {500, 60}, 28, 4, true).p).tile_rows == kFewTileRows);
  CHECK(plan_of(Case({64}, {64}, 1, 1, true).p).tile_rows == kFewTileRows);
  CHECK(plan_of(Case({65}, {65}, 1, 1, true).p).tile_rows == kTileRows);
}

TEST(right_bounds_are_told_from_wrong_ones) {
  const auto first_wrong = [](const Case& one) {
    for (int64_t n = 0; n < one.p.sequences; ++n) {
      const Bounds wrong = wrong_bounds(one.p, n);
      if (wrong != Bounds::kRight) return std::pair(n, wrong);
    }
    return std::pair(int64_t{-1}, Bounds::kRight);
  };
  Case one({3, 0, 5}, {4, 2, 5}, 1, 1, true);
  CHECK((first_wrong(one) == std::pair(int64_t{-1}, Bounds::kRight)));
  one.cu_q[0] = 1;
  CHECK((first_wrong(one) == std::pair(int64_t{0}, Bounds::kQueries)));
  one.cu_q[0] = -1;
  CHECK((first_wrong(one) == std::pair(int64_t{0}, Bounds::kQueries)));
  one.cu_q = {0, 3, 3, 7};
  CHECK((first_wrong(one) == std::pair(int64_t{2}, Bounds::kQueries)));
  one.cu_q = {0, 3, 3, 8};
  one.cu_k = {0, 7, 6, 11};
  CHECK((first_wrong(one) == std::pair(int64_t{1}, Bounds::kKeys)));
  one.cu_k = {0, 4, 6, 11};
  one.used = {4, 3, 5};
  one.p.seqused_k = one.used.data();
  CHECK((first_wrong(one) == std::pair(int64_t{1}, Bounds::kUsed)));
  one.used = {-1, 2, 5};
  CHECK((first_wrong(one) == std::pair(int64_t{0}, Bounds::kUsed)));
  one.used = {0, 2, 1};
  CHECK((first_wrong(one) == std::pair(int64_t{-1}, Bounds::kRight)));
}

TEST(whatever_bounds_say_rows_and_keys_lie_within_the_arrays) {
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 3000; ++repeat) {
    Case one({9, 200, 3}, {9, 40, 300}, 14, 2, repeat % 2 == 0);
    one.used = {9, 40, 300};
    one.p.seqused_k = one.used.data();
    const auto hostile = [&] {
      const int32_t extremes[] = {std::numeric_limits<int32_t>::min(), -1,
                                  std::numeric_limits<int32_t>::max()};
      return random() % 2 == 0 ? extremes[random() % 3] : static_cast<int32_t>(random() % 700) - 200;
    };
    for (auto* bounds : {&one.cu_q, &one.cu_k, &one.used}) (*bounds)[random() % bounds->size()] = hostile();
    const Plan plan = plan_of(one.p);
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const Tile tile = tile_of(one.p, plan, slot);
      if (tile.sequence < 0) continue;
      CHECK(tile.sequence < one.p.sequences && tile.block >= 0);
      const Rows rows(one.p, plan, tile, 1);
      CHECK(rows.count > 0 && rows.count <= plan.tile_rows);
      CHECK(rows.line(0) >= 0 && rows.line(rows.count - 1) < one.p.tokens_q * one.p.heads);
      const Sequence& s = rows.sequence;
      CHECK(s.key_begin >= 0 && s.keys >= 0 && s.key_begin + s.keys <= one.p.tokens_k);
      CHECK(rows.tiles().all * kKeys < s.keys + kKeys && rows.tiles().whole <= rows.tiles().all);
      const int64_t first = tile.block * plan.tile_rows, at = numbers_at(one.p, s, 1, first);
      CHECK(at >= 0 && at + rows.count <= one.p.tokens_q * one.p.heads);
    }
    const Params keys = with_keys_as_rows(one.p);
    const Plan plan_of_keys = plan_of(keys);
    for (int64_t slot = 0; slot < plan_of_keys.slots; ++slot) {
      const Tile tile = key_tile_of(keys, plan_of_keys, slot);
      if (tile.sequence < 0) continue;
      CHECK(tile.sequence < one.p.sequences && tile.block >= 0);
      const Sequence room = sequence_of(keys, tile.sequence), s = sequence_of(one.p, tile.sequence);
      const int64_t first = tile.block * plan_of_keys.tile_rows;
      CHECK(room.query_begin == s.key_begin && rows_in(room, plan_of_keys, tile.block) > 0);
      CHECK(room.query_begin + first + rows_in(room, plan_of_keys, tile.block) <= one.p.tokens_k);
      const RowTiles tiles = row_tiles(s, first, plan_of_keys.tile_rows, 7, one.p.causal);
      CHECK(tiles.begin >= 0 && (tiles.end == 0 || (tiles.end - 1) * kKeys < s.queries * 7));
    }
  }
}

// No array is read: lengths are equal.
TEST(sizes_beyond_2_31_are_counted_right) {
  Params p;
  p.sequences = 3;
  p.heads = 112, p.kv_heads = 4, p.dim = 64;
  p.tokens_q = 3 * ((int64_t{1} << 31) - 1), p.tokens_k = p.tokens_q;
  p.causal = true;
  const Plan plan = plan_of(p);
  const int64_t rows = ((int64_t{1} << 31) - 1) * 28, blocks = (rows + 127) / 128;
  CHECK(plan.slots == 3 * blocks && !plan.ordered);
  const Tile last = tile_of(p, plan, plan.slots - 1), first = tile_of(p, plan, 1);
  CHECK(last.sequence == 2 && last.block == 0);
  CHECK(first.sequence == 1 && first.block == blocks - 1);
  const Rows of_first(p, plan, first, 3);
  CHECK(of_first.count == rows - (blocks - 1) * 128);
  CHECK(of_first.line(of_first.count - 1) == p.tokens_q / 3 * 2 * 112 - 1);
  CHECK(of_first.seen(of_first.count - 1) == (int64_t{1} << 31) - 1);
  CHECK(of_first.tiles().all == int64_t{1} << 25);
}
