// SPDX-License-Identifier: Apache-2.0
// Attention over a paged cache against float64: on the CPU, and on a GPU or by the emulator. Lengths end
// before, at and behind the ends of pages, tiles of 64 keys and pieces of 512; what nobody may read is NaN.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/cpp/paged_case.h"

namespace {

using namespace paged_case;
using Case16 = CaseOf<Float16>;

std::vector<int32_t> each(size_t count, int32_t queries) { return std::vector<int32_t>(count, queries); }

}  // namespace

TEST(lengths_at_the_ends_of_pages_tiles_and_pieces) {
  const std::vector<int32_t> lengths{1, 15, 16, 17, 63, 64, 65, 0, 511, 512, 513, 1025};
  compare(Case({lengths, each(lengths.size(), 1), 4, 1, 64, 16}), false);
  compare(Case({lengths, each(lengths.size(), 1), 4, 1, 128, 16}), false);
  compare(Case16({lengths, each(lengths.size(), 1), 4, 1, 64, 16}), false);
}

TEST(groups_of_heads) {
  for (int64_t group : {1, 4, 7, 16}) compare(Case({{70, 530}, {1, 1}, 2 * group, 2, 64, 32}));
  compare(Case({{70, 530}, {1, 1}, 28, 4, 128, 64}));
  compare(Case16({{70, 530}, {1, 1}, 14, 2, 128, 64}));
}

TEST(one_to_eight_queries_see_what_came_before_them) {
  for (int32_t queries : {2, 3, 8})  // 5 keys: some of 8 queries see none
    compare(Case({{5, 66, 515}, each(3, queries), 7, 1, 64, 16}), false);
  compare(Case({{5, 66, 515}, each(3, 8), 16, 1, 128, 16}));  // 128 rows: two blocks read the same keys
  compare(Case({{9, 520}, each(2, 5), 7, 1, 128, 256}));      // three tiles of rows
  compare(Case16({{5, 66, 515}, each(3, 8), 16, 1, 128, 16}));
}

TEST(sequences_with_different_numbers_of_queries) {
  compare(Case({{40, 600, 0, 17, 530, 1}, {3, 8, 2, 1, 0, 1}, 4, 2, 64, 16}));
}

TEST(every_size_of_page) {
  for (int64_t page_size : {16, 32, 64, 128, 256}) compare(Case({{255, 513}, {1, 2}, 2, 1, 64, page_size}));
}

TEST(many_sequences_are_walked_over) {  // more than a warp looks at together, and gaps between them
  Shape shape{{}, {}, 1, 1, 64, 16};
  for (int i = 0; i < 75; ++i) {
    shape.lengths.push_back(i == 40 ? 1030 : i % 5);
    shape.queries.push_back(i % 7 == 3 ? 0 : 1);
  }
  compare(Case(shape));
}

TEST(large_and_small_scores) {
  for (double scale : {1e-6, 5.0, 1e4}) {
    compare(Case({{130, 700}, {1, 2}, 4, 2, 64, 16, scale}));
    compare(Case16({{130, 700}, {1, 2}, 4, 2, 64, 16, scale}));
  }
}

namespace {

template <typename C>
void check_alone_and_in_a_batch(Device device) {
  const std::vector<int32_t> lengths{700, 3, 64, 1100, 40}, queries{1, 4, 2, 8, 1};
  C batch({lengths, queries, 8, 2, 64, 16});
  batch.run(device);
  for (size_t n = 0; n < lengths.size(); ++n) {
    const unsigned name = static_cast<unsigned>(n) + 1;
    C alone({{lengths[n]}, {queries[n]}, 8, 2, 64, 16}, {name}, 77, 30);  // other pages, a wider table
    alone.run(device);
    const int64_t first = batch.cu_seqlens[n];
    CHECK(same_bits(alone.out, rows_of(batch.out, first, queries[n], 8 * 64)));
    CHECK(same_bits(alone.lse, rows_of(batch.lse, first, queries[n], 8)));
  }
}

template <typename C>
void check_one_and_eight_queries(Device device, int32_t length) {
  C eight({{length}, {8}, 7, 1, 128, 32});
  eight.run(device);
  C last({{length}, {1}, 7, 1, 128, 32});
  last.run(device);
  CHECK(same_bits(last.out, rows_of(eight.out, 7, 1, 7 * 128)));
  CHECK(same_bits(last.lse, rows_of(eight.lse, 7, 1, 7)));
  // The third of the eight, when it was the newest: the cache was five keys shorter.
  C third({{length}, {6}, 7, 1, 128, 32});
  third.lengths[0] -= 5;
  third.params.tokens = 1, third.params.most_queries = 1, third.cu_seqlens = {0, 1};
  third.q = rows_of(eight.q, 2, 1, 7 * 128);
  third.run(device);
  CHECK(same_bits(third.out, rows_of(eight.out, 2, 1, 7 * 128)));
  CHECK(same_bits(third.lse, rows_of(eight.lse, 2, 1, 7)));
}

}  // namespace

TEST(a_sequence_alone_has_the_bits_it_has_in_a_batch) {
  for (Device device : devices()) {
    check_alone_and_in_a_batch<Case>(device);
    check_alone_and_in_a_batch<Case16>(device);
  }
}

TEST(a_query_has_the_same_bits_however_many_are_asked) {
  for (Device device : devices()) {
    for (int32_t length : {20, 513, 1026}) check_one_and_eight_queries<Case>(device, length);
    check_one_and_eight_queries<Case16>(device, 513);
  }
}

TEST(two_runs_give_the_same_bits) {
  Case one({{1300, 31}, {3, 1}, 14, 2, 64, 16}), again = one;
  for (Device device : devices()) {
    one.run(device);
    again.run(device);
    CHECK(same_bits(one.out, again.out) && same_bits(one.lse, again.lse));
  }
}

TEST(without_keys_a_row_is_0_and_its_sum_minus_infinity) {
  for (Device device : devices()) {
    Case c({{0, 2}, {2, 4}, 2, 1, 64, 16});
    CHECK(c.run(device).empty());
    for (int64_t token : {0, 1, 2, 3}) {  // of the second sequence, two queries stand before its first key
      for (BFloat16 x : rows_of(c.out, token, 1, 2 * 64)) CHECK(widen(x) == 0.0f);
      for (float x : rows_of(c.lse, token, 1, 2)) CHECK(x == -INFINITY);
    }
    CHECK(std::isfinite(c.lse[8]));
  }
}

TEST(nan_is_its_own_sequences_and_heads_trouble) {
  for (Device device : devices()) {
    Case clean({{600, 600}, {1, 1}, 4, 2, 64, 16});
    clean.run(device);
    for (bool in_keys : {true, false}) {
      Case dirty = clean;
      auto& pool = in_keys ? dirty.k : dirty.v;
      pool[static_cast<size_t>(dirty.place_of_key(0, 550, 1) + 5)] = BFloat16{0x7fc0};
      dirty.run(device);
      for (size_t i = 0; i < dirty.out.size(); ++i) {
        const size_t head = i / 64 % 4, sequence = i / 256;
        const bool reached = sequence == 0 && head >= 2 && (in_keys || i % 64 == 5);
        CHECK(reached ? is_nan(dirty.out[i]) : dirty.out[i].bits == clean.out[i].bits);
      }
    }
  }
}

#if defined(EARNEST_WITH_CUDA)
TEST(a_length_or_page_that_cannot_be_is_recorded_and_gives_nan) {
  Case right({{40, 600, 40, 600}, {1, 2, 1, 1}, 4, 2, 64, 16});
  right.run();
  const auto check_rows = [&](Case c, int64_t token, int64_t count, const std::string& message) {
    CHECK(c.run(Device::kCpu) == message);
    CHECK(c.run() == message);
    for (int64_t i = 0; i < c.params.tokens; ++i) {
      const auto rows = rows_of(c.out, i, 1, 4 * 64);
      const bool bad = i >= token && i < token + count;
      CHECK(bad ? std::all_of(rows.begin(), rows.end(), is_nan<BFloat16>)
                : same_bits(rows, rows_of(right.out, i, 1, 4 * 64)));
      CHECK(std::isnan(c.lse[static_cast<size_t>(4 * i)]) == bad);
    }
  };
  for (int32_t length : {-1, 39 * 16 + 1, INT32_MIN, INT32_MAX}) {
    Case c = right;
    c.lengths[1] = length;
    check_rows(c, 1, 2, "[paged_attention] lengths: expected 0 to 624 keys, got another for sequence 1");
  }
  for (int32_t page : {-1, static_cast<int32_t>(right.params.pages), INT32_MIN, INT32_MAX}) {
    for (int64_t at : {0, 31, 37}) {  // in either piece
      Case c = right;
      c.table[static_cast<size_t>(3 * c.params.table_pages + at)] = page;
      check_rows(c, 4, 1,
                 "[paged_attention] page_table: expected pages in [0, " + std::to_string(c.params.pages) +
                     ") up to the length, got another for sequence 3");
    }
  }
  CHECK(paged::fault(right.params, kNoFault).ok());
}
#endif

TEST(a_cache_of_8_bits) {
  using Case8 = CaseOf<BFloat16, Float8>;
  compare(CaseOf<Float16, Float8>({{1, 16, 65, 0, 513, 1025}, each(6, 1), 8, 2, 64, 16}));
  compare(CaseOf<Float16, Float8>({{5, 70, 530}, {1, 8, 3}, 14, 2, 128, 32}));
  compare(Case8({{1, 16, 65, 0, 513, 1025}, each(6, 1), 8, 2, 64, 16}));
  compare(Case8({{5, 70, 530}, {1, 8, 3}, 14, 2, 128, 32}));
  compare(Case8({{66, 515}, each(2, 8), 16, 1, 64, 16}));  // 128 rows, and the least shared memory
  Case8 batch({{700, 40}, {1, 4}, 8, 2, 128, 16}), alone({{40}, {4}, 8, 2, 128, 16}, {2}, 5, 50);
  for (Device device : devices()) {
    batch.run(device);
    alone.run(device);
    CHECK(same_bits(alone.out, rows_of(batch.out, 1, 4, 8 * 128)));
  }
}

namespace {

template <typename Number>
void check_every_byte(Device device) {
  CaseOf<Number, Float8> c({{1}, {1}, 1, 1, 64, 16});
  const auto value = static_cast<size_t>(c.place_of_key(0, 0, 0));
  c.v_scale[0] = 1;
  for (int first = 0; first < 256; first += 64) {
    for (size_t d = 0; d < 64; ++d) c.v[value + d].bits = static_cast<uint8_t>(first + static_cast<int>(d));
    CHECK(c.run(device).empty());
    for (size_t d = 0; d < 64; ++d) {  // one key weighs 1; numbers of 16 bits hold every e4m3
      const float right = widen(c.v[value + d]), found = widen(c.out[d]);
      CHECK(std::isnan(right) ? std::isnan(found) : right == found);
    }
  }
  CHECK(is_nan(c.out[63]) && !is_nan(c.out[62]));  // 0xff; and 0xfe, which is - 448
}

}  // namespace

TEST(every_byte_of_a_cache_is_read_as_the_number_it_is) {
  for (Device device : devices()) {
    check_every_byte<BFloat16>(device);
    check_every_byte<Float16>(device);
  }
}

#if defined(EARNEST_WITH_CUDA)
TEST(a_scale_that_cannot_be_is_recorded_and_gives_nan) {
  const CaseOf<BFloat16, Float8> right({{40, 600}, {1, 1}, 4, 2, 64, 16});
  const std::string message =
      "[paged_attention] k_scale, v_scale: expected finite numbers above 0, got another for key head 1";
  for (float scale : {0.0f, -1.0f, INFINITY, std::nanf("")}) {
    CaseOf<BFloat16, Float8> c = right;
    (scale == 0 ? c.k_scale : c.v_scale)[1] = scale;
    CHECK(c.run(Device::kCpu) == message);
    CHECK(c.run() == message);
    for (size_t i = 0; i < c.out.size(); ++i) CHECK(is_nan(c.out[i]) == (i / 64 % 4 >= 2));
  }
}

TEST(bounds_that_cannot_be_are_recorded_and_nothing_is_written) {
  const Case right({{40, 60, 70}, {2, 1, 3}, 4, 2, 64, 16});
  const std::string message =
      "[paged_attention] cu_seqlens_q: expected 0 to 3 queries a sequence within 6 tokens, got another for "
      "sequence 1";
  for (int32_t end : {1, 6, 7, -5, INT32_MAX, INT32_MIN}) {  // falls; more than 3; beyond the tokens
    Case c = right;
    c.cu_seqlens[2] = end, c.cu_seqlens[3] = end;
    CHECK(c.run(Device::kCpu) == message);
    CHECK(c.run() == message);
    CHECK(!is_nan(c.out[0]));
    for (BFloat16 x : rows_of(c.out, 2, 4, 4 * 64)) CHECK(x.bits == 0xffff);
  }
}
#endif

namespace {

template <typename C>
C with(C c, int64_t piece_keys, int stages = 0) {
  c.params.piece_keys = piece_keys, c.params.stages = stages;
  return c;
}

}  // namespace

#if defined(EARNEST_WITH_CUDA)
TEST(pieces_of_another_size_give_the_same_but_for_rounding) {
  compare(with(Case({{0, 255, 256, 257, 513}, each(5, 1), 1, 1, 64, 16}), 256));
  compare(with(Case({{511, 1023, 1024, 1025}, each(4, 2), 1, 1, 64, 16}), 1024));
  compare(with(Case({{520, 2047, 2048, 2050}, each(4, 3), 1, 1, 64, 256}), 2048));
  compare(with(Case16({{300, 2049}, {8, 1}, 3, 1, 128, 16}), 2048));
  compare(with(CaseOf<BFloat16, Float8>({{1030}, {5}, 4, 1, 64, 32}), 1024));
}

TEST(the_size_of_pieces_is_the_one_that_is_asked_for) {
  const Case c({{256, 1000}, {1, 1}, 7, 1, 64, 16});
  std::vector<std::vector<BFloat16>> found;
  for (int64_t keys : {256, 512, 1024, 2048}) {
    Case one = with(c, keys);
    CHECK(one.run().empty());
    found.push_back(one.out);
    CHECK(same_bits(rows_of(one.out, 0, 1, 7 * 64), rows_of(found[0], 0, 1, 7 * 64)));  // one piece anyway
  }
  CHECK(!same_bits(found[0], found[1]) && !same_bits(found[1], found[2]));
  CHECK(same_bits(found[2], found[3]));  // 1000 keys are one piece of either
}

TEST(pieces_of_another_size_have_the_same_bits_in_any_company) {
  for (int64_t keys : {256, 1024, 2048}) {
    const int32_t length = static_cast<int32_t>(keys) + 70;
    Case batch = with(Case({{3, length, 200}, {2, 8, 1}, 2, 1, 64, 16}), keys);
    Case alone = with(Case({{length}, {8}, 2, 1, 64, 16}, {2}, 77, 30), keys, 2);
    Case last = with(Case({{length}, {1}, 2, 1, 64, 16}, {2}), keys, 4);
    for (Case* c : {&batch, &alone, &last}) CHECK(c->run().empty());
    CHECK(same_bits(alone.out, rows_of(batch.out, 2, 8, 2 * 64)));
    CHECK(same_bits(alone.lse, rows_of(batch.lse, 2, 8, 2)));
    CHECK(same_bits(last.out, rows_of(batch.out, 9, 1, 2 * 64)));
    CHECK(same_bits(last.lse, rows_of(batch.lse, 9, 1, 2)));
  }
}

TEST(no_bit_depends_on_how_many_tiles_are_in_shared_memory) {
  const std::vector<int32_t> lengths{1, 65, 129, 193, 320};  // of 1 to 5 tiles
  for (int32_t queries : {1, 8}) {
    const Case c({lengths, each(lengths.size(), queries), 7, 1, 64, 16});
    std::vector<Case> found;
    for (int stages : {0, 2, 3, 4}) {
      found.push_back(with(c, 512, stages));
      CHECK(found.back().run().empty());
      CHECK(same_bits(found.back().out, found[0].out) && same_bits(found.back().lse, found[0].lse));
    }
  }
}

TEST(every_page_of_a_long_piece_is_looked_at) {
  const Case right = with(Case({{40, 2040}, {1, 1}, 1, 1, 64, 16}), 2048);
  for (int64_t at : {0, 33, 127}) {
    Case c = right;
    c.table[static_cast<size_t>(c.params.table_pages + at)] = static_cast<int32_t>(right.params.pages);
    CHECK(c.run().find("[paged_attention] page_table: expected pages in [0, ") == 0);
    CHECK(!is_nan(c.out[0]) && is_nan(c.out[64]) && std::isnan(c.lse[1]));
  }
}
#endif

TEST(calls_that_cannot_run_say_why) {
  Case c({{4}, {1}, 4, 2, 64, 16});
  const auto message = [&](auto change) {
    paged::Params p = c.params;
    p.device = Device::kCuda;
    p.q = p.k = p.v = c.q.data();
    p.page_table = c.table.data(), p.lengths = c.lengths.data();
    change(p);
    return paged::run(p, {c.q.data(), nullptr}, nullptr).message();
  };
  using P = paged::Params;
  CHECK(message([](P& p) { p.type = attention::Type::kFloat32; }) ==
        "[paged_attention] q: expected bfloat16 or float16, got another type");
  CHECK(message([](P& p) { p.dim = 80; }) ==
        "[paged_attention] q: expected a head size of 64 or 128, got 80");
  CHECK(message([](P& p) { p.page_size = 48; }) ==
        "[paged_attention] page_size: expected a power of two from 16 to 256, got 48");
  CHECK(message([](P& p) { p.heads = 34; }) ==
        "[paged_attention] k: expected a number of heads that divides q's 34 into at most 16 each, got 2");
  CHECK(message([](P& p) { p.most_queries = p.tokens = 9; }) ==
        "[paged_attention] most_queries: expected 1 to 8, got 9");
  for (int64_t keys : {int64_t{0}, int64_t{-512}, int64_t{100}, int64_t{128}, int64_t{1} << 30, INT64_MAX}) {
    CHECK(message([&](P& p) { p.piece_keys = keys; }) ==
          "[paged_attention] piece_keys: expected 256, 512, 1024 or 2048, got " + std::to_string(keys));
  }
  for (int stages : {-1, 1, 5, 1 << 30}) {
    CHECK(message([&](P& p) { p.stages = stages; }) ==
          "[paged_attention] stages: expected 2 to 4, or 0 for a choice, got " + std::to_string(stages));
  }
  CHECK(message([](P& p) { p.device = Device::kCpu, p.piece_keys = 1024; }) ==
        "[paged_attention] piece_keys: expected 512 on the CPU, got 1024");
  CHECK(message([](P& p) { p.device = Device::kCpu, p.stages = 2; }) ==
        "[paged_attention] stages: expected 0 on the CPU, got 2");
  CHECK(message([](P& p) { p.tokens = 2; }) ==
        "[paged_attention] q: expected 1 tokens (1 queries a sequence), got 2");
  CHECK(message([](P& p) { p.scale = -1; }).find("[paged_attention] scale: expected a positive finite") == 0);
  CHECK(message([](P& p) { p.v = nullptr; }) == "[paged_attention] v: expected an array, got none");
  CHECK(message([](P& p) { p.k = static_cast<const BFloat16*>(p.k) + 1; }).find("begins on 16 bytes") !=
        std::string::npos);
  CHECK(message([](P& p) { p.pages = int64_t{1} << 31; }).find("[paged_attention] page_table") == 0);
  CHECK(message([](P& p) { p.sequences = p.tokens = 1 << 29; }).find("at most 2^30 rows") !=
        std::string::npos);
  CHECK(message([](P& p) { p.sequences = p.tokens = 1 << 20, p.table_pages = 1 << 20; }) ==
        "[paged_attention] page_table: expected at most 2^30 times 512 keys and key heads, got 1048576 x "
        "1048576 "
        "pages");
  CHECK(message([](P& p) { p.table_pages = 100; }) ==
        "[paged_attention] workspace: expected memory on the device, got none");
  std::string name;
  CHECK(paged::which(Device::kCpu, &name).ok() && name.find("cpu/") == 0);
#if defined(EARNEST_WITH_CUDA)
  CHECK(paged::which(Device::kCuda, &name).ok() && name == "cuda/sm80");
#else
  CHECK(message([](P&) {}).find("[paged_attention] device: expected cpu (earnest was built without") == 0);
  CHECK(paged::which(Device::kCuda, &name).code() == StatusCode::kUnsupported);
#endif
}
