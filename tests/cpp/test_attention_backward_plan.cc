// SPDX-License-Identifier: Apache-2.0
// How attention's backward pass of path sm90a cuts its work and whose turn it is when: every pair that sees
// passes once, every turn comes, nobody waits for a later ticket; whatever bounds say, nothing outside of the
// workspace.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "kernels/attention/attention_backward_plan.h"
#include "tests/cpp/check.h"

namespace {

using namespace earnest;
using namespace earnest::attention;
using namespace earnest::attention::gpu;

int64_t below(std::mt19937& random, int64_t most) { return static_cast<int64_t>(random()) % most; }

// Whether the contract shows token i of the sequence key j.
bool sees(const Sequence& s, int64_t i, int64_t j, bool causal) {
  return j < s.keys && (!causal || j <= i + s.keys - s.queries);
}

struct Batch {
  std::vector<int32_t> cu_q{0}, cu_k{0};
  Params p;
  Batch(std::mt19937& random, int64_t dim, int sequences, int most, bool causal) {
    for (int i = 0; i < sequences; ++i) {
      cu_q.push_back(cu_q.back() + static_cast<int>(below(random, most)));
      cu_k.push_back(cu_k.back() + static_cast<int>(below(random, most)));
    }
    p.path = CudaPath::kSm90a;
    p.sequences = sequences, p.tokens_q = cu_q.back(), p.tokens_k = cu_k.back();
    p.heads = 6, p.kv_heads = 2, p.dim = dim, p.causal = causal;
    p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
  }
};

// The tiles in the order of tickets: as slots lie, or listed, the longest first, stably.
std::vector<Tile> in_order(const Params& p, bool listed) {
  const Params keys = with_keys_as_rows(p);
  const Plan plan = plan_of(keys);
  std::vector<Tile> tiles;
  for (int64_t slot = 0; slot < plan.slots; ++slot) tiles.push_back(key_tile_of(keys, plan, slot));
  if (listed) {
    std::stable_sort(tiles.begin(), tiles.end(), [&](const Tile& a, const Tile& b) {
      return class_of_keys(p, plan, a) > class_of_keys(p, plan, b);
    });
  }
  return tiles;
}

}  // namespace

TEST(tiles_of_tokens_are_those_that_see_a_tile_of_keys) {
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 400; ++repeat) {
    const Sequence s{0, below(random, 300), 0, below(random, 300)};
    const bool causal = repeat % 2 == 0;
    const int64_t tokens = tile_tokens(repeat % 3 == 0 ? 64 : 128);
    const int64_t first = below(random, s.keys / kTileRows + 1) * kTileRows;
    const TokenTiles tiles = token_tiles(s, first, tokens, causal);
    for (int64_t tile = 0; tile <= 300 / tokens; ++tile) {
      bool some = false, all = true;
      for (int64_t i = tile * tokens; i < (tile + 1) * tokens; ++i) {
        for (int64_t j = first; j < first + kTileRows; ++j) {
          const bool seen = i < s.queries && sees(s, i, j, causal);
          some |= seen, all &= seen;
        }
      }
      CHECK(some == (tile >= tiles.begin && tile < tiles.end));
      if (some) CHECK(all == (tile >= tiles.whole_begin && tile < tiles.whole_end));
    }
  }
}

TEST(each_head_of_the_group_passes_once_the_last_tile_first) {
  const TokenTiles tiles{3, 6, 4, 5};
  std::vector<int> passed;
  for (Pass pass(tiles); pass.is_left(tiles); pass.next(7)) {
    passed.push_back(pass.tile * 7 + pass.member);
    CHECK(pass.is_whole(tiles) == (pass.tile == 4));
  }
  CHECK(passed.size() == 21);
  std::set<int> once(passed.begin(), passed.end());
  CHECK(once.size() == 21 && *once.begin() == 21 && *once.rbegin() == 41);
  for (size_t i = 7; i < passed.size(); ++i) CHECK(passed[i] == passed[i - 7] - 7);
  const TokenTiles none{0, 0, 0, 0};
  CHECK(!Pass(none).is_left(none));
}

// With each block done before the next ticket's begins, every turn has come when it is waited for: whoever
// waits, waits for an earlier ticket.
TEST(every_turn_comes_by_earlier_tickets) {
  std::mt19937 random(2);
  for (int repeat = 0; repeat < 60; ++repeat) {
    const Batch batch(random, repeat % 2 == 0 ? 64 : 128, 1 + static_cast<int>(below(random, 9)), 700,
                      repeat % 3 != 0);
    const Params& p = batch.p;
    const TurnPlan plan = turn_plan_of(p, 0);
    std::vector<int64_t> turns(static_cast<size_t>(plan.counts));
    for (const Tile& tile : in_order(p, repeat % 5 != 0)) {
      if (tile.sequence < 0) continue;
      const Sequence s = sequence_of(p, tile.sequence);
      const TokenTiles tiles = token_tiles(s, tile.block * kTileRows, tile_tokens(p.dim), p.causal);
      for (int64_t kv_head = 0; kv_head < p.kv_heads; ++kv_head) {
        for (Pass pass(tiles); pass.is_left(tiles); pass.next(3)) {
          int64_t& turn = turns.at(static_cast<size_t>(
              1 + turn_at(p, s.query_begin, tile.sequence, kv_head * 3 + pass.member, pass.tile)));
          CHECK(turn == tile.block);  // and nobody else's
          ++turn;
        }
      }
    }
  }
}

// Who sees any key sees the first tile of keys, which writes where others add.
TEST(whoever_sees_a_key_has_the_first_turn) {
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const Sequence s{0, below(random, 300), 0, below(random, 400)};
    const bool causal = repeat % 2 == 0;
    const TokenTiles first = token_tiles(s, 0, 64, causal);
    for (int64_t i = 0; i < s.queries; ++i)
      if (keys_seen(s, i, causal) > 0) CHECK(i / 64 >= first.begin && i / 64 < first.end);
  }
}

TEST(turns_lie_in_the_workspace_whatever_bounds_say) {
  std::mt19937 random(4);
  for (int repeat = 0; repeat < 300; ++repeat) {
    Batch batch(random, 128, 6, 500, repeat % 2 == 0);
    Params& p = batch.p;
    constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
    batch.cu_q[static_cast<size_t>(below(random, 7))] = static_cast<int32_t>(below(random, 3000)) - 700;
    if (repeat % 4 == 0) batch.cu_q[static_cast<size_t>(below(random, 7))] = repeat % 8 == 0 ? kMost : -kMost;
    const TurnPlan plan = turn_plan_of(p, 0);
    for (int64_t n = 0; n < p.sequences; ++n) {
      const Sequence s = sequence_of(p, n);
      for (int64_t tile = 0; tile < blocks_of(s.queries, 64); ++tile) {
        const int64_t last = turn_at(p, s.query_begin, n, p.heads - 1, tile);
        CHECK(last >= 0 && last + 1 < plan.counts);
        CHECK(turn_at(p, s.query_begin, n, 0, tile) < turns_of_head(p.tokens_q, p.sequences, 64));
      }
    }
  }
}

TEST(pieces_of_sums_change_places_within_their_128_bytes) {
  for (int64_t token = 0; token < 9; ++token) {
    std::set<int> places;
    for (int piece = 0; piece < 32; ++piece) {
      places.insert(place_of_sum(token, piece));
      CHECK(place_of_sum(token, piece) / 8 == piece / 8);
      CHECK(place_of_sum(token, place_of_sum(token, piece)) == piece);
    }
    CHECK(places.size() == 32);
  }
  // What half a warp stores at once: four rows, two pieces each, of 32 bytes in 256 that lie in all banks.
  std::set<int> banks;
  for (int row = 0; row < 4; ++row)
    for (int piece = 0; piece < 2; ++piece) banks.insert(place_of_sum(row, piece) % 8);
  CHECK(banks.size() == 8);
}

TEST(the_workspace_of_turns_stands_behind_numbers_and_list) {
  std::mt19937 random(5);
  const Batch batch(random, 128, 200, 90, true);
  const Params& p = batch.p;
  const BackwardPlan plan = backward_plan_of(p, 227 << 10);
  CHECK(!plan.rows.ordered && plan.keys.ordered && plan.keys.tile_rows == 128);
  CHECK(plan.row_list == static_cast<size_t>(p.tokens_q * p.heads) * sizeof(RowNumbers));
  CHECK(plan.key_list == plan.row_list);
  CHECK(plan.turns.sums == plan.key_list + static_cast<size_t>(plan.keys.slots) * sizeof(Tile));
  CHECK(plan.turns.ticket == plan.turns.sums + static_cast<size_t>(p.tokens_q * p.heads * 128) * 4);
  CHECK(plan.turns.counts == 1 + 6 * (p.tokens_q / 64 + 200));
  CHECK(plan.bytes >= plan.turns.ticket + static_cast<size_t>(plan.turns.counts) * 4);
  CHECK(plan.turns.sums % 16 == 0 && plan.bytes % 16 == 0);
  Params other = p;
  other.path = CudaPath::kSm80;
  CHECK(backward_plan_of(other, 227 << 10).turns.bytes == 0);
}
