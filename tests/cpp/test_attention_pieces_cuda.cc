// SPDX-License-Identifier: Apache-2.0
// Attention on CUDA with keys in pieces of 512 that have a softmax each: near the definition, and a row has
// the same bits whether one block takes all pieces of it, as in a prompt, or each piece has a block, as in
// decoding.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention/attention_pieces.h"
#include "tests/cpp/attention_calls.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace attention_calls;

template <typename T>
Case<T> in_pieces(const std::vector<int>& queries, const std::vector<int>& keys, int64_t heads,
                  int64_t kv_heads, int64_t dim, bool causal) {
  Case<T> c(queries, keys, heads, kv_heads, dim, causal);
  c.p.path = path_of_all;
  c.p.most_keys = 1;
  for (const int count : keys) c.p.most_keys = std::max<int64_t>(c.p.most_keys, count);
  return c;
}

// Tokens [begin, end) of the only sequence as a call of its own, after all before them.
template <typename T>
bool chunk_equals(const Case<T>& whole, int begin, int end, int64_t most_keys = 0) {
  Case<T> chunk = chunk_of(whole, begin, end);
  chunk.p.most_keys = most_keys > 0 ? most_keys : chunk.used[0];
  run(&chunk);
  return equals_part(chunk, whole, begin);
}

}  // namespace

TEST(pieces_are_within_twice_plain_arithmetic) {
  compare(in_pieces<BFloat16>({1, 0, 3, 1, 1}, {1025, 9, 600, 512, 0}, 7, 1, 128, true));
  compare(in_pieces<BFloat16>({1, 2, 1, 1, 2, 1}, {511, 512, 513, 1023, 1024, 1600}, 4, 2, 64, true));
  compare(in_pieces<Float16>({70, 1}, {1100, 1100}, 2, 1, 64, true));
  compare(in_pieces<Float16>({1, 2}, {700, 520}, 2, 2, 128, false));
  Case<BFloat16> huge = in_pieces<BFloat16>({1, 5}, {1300, 800}, 2, 1, 64, true);
  for (BFloat16& x : huge.q) x = number_of<BFloat16>(widen(x) * 30.0);
  compare(huge);
}

TEST(up_to_512_keys_have_the_bits_of_no_pieces) {
  Case<BFloat16> pieces = in_pieces<BFloat16>({1, 130, 1, 0}, {512, 511, 64, 7}, 7, 1, 64, true),
                 whole = pieces;
  whole.p.most_keys = 0;
  run(&pieces);
  run(&whole);
  CHECK(same_bits(pieces.out, whole.out) && same_bits(pieces.lse, whole.lse));
  Case<BFloat16> longer = in_pieces<BFloat16>({20}, {640}, 2, 1, 64, false), of_one = longer;
  of_one.p.most_keys = 0;
  run(&longer);
  run(&of_one);
  CHECK(!same_bits(longer.lse, of_one.lse));  // a piece ends at 512
  pieces.p.most_keys = 5000;                  // grids for ten pieces
  run(&pieces);
  CHECK(same_bits(pieces.out, whole.out) && same_bits(pieces.lse, whole.lse));
}

TEST(a_step_of_decoding_has_the_bits_of_the_prompt) {
  Case<BFloat16> whole = in_pieces<BFloat16>({40}, {1060}, 6, 2, 64, true);
  run(&whole);
  for (const int token : {0, 3, 4, 5, 39})
    CHECK(chunk_equals(whole, token, token + 1));  // 1021, 1024, 1025 keys
  CHECK(chunk_equals(whole, 7, 8, 1060) && chunk_equals(whole, 7, 8, 100000));
  CHECK(chunk_equals(whole, 0, 2) && chunk_equals(whole, 2, 40));
  Case<Float16> wide = in_pieces<Float16>({3}, {515}, 7, 1, 128, true);
  run(&wide);
  for (const int token : {0, 1, 2}) CHECK(chunk_equals(wide, token, token + 1));
  Case<BFloat16> tiles = in_pieces<BFloat16>({40}, {530}, 4, 1, 128, true);  // of rows, in any path
  run(&tiles);
  CHECK(chunk_equals(tiles, 0, 13) && chunk_equals(tiles, 13, 39) && chunk_equals(tiles, 39, 40));
}

TEST(a_sequence_is_decoded_the_same_in_any_batch) {
  check_every_sequence_alone(
      in_pieces<BFloat16>({1, 1, 5, 1, 0, 1}, {1030, 3, 700, 1537, 40, 513}, 2, 1, 64, true));
  check_every_sequence_alone(in_pieces<Float16>({1, 4, 1}, {600, 514, 1025}, 6, 2, 128, true));
}

TEST(parts_of_sequences_never_share_a_place) {
  const std::vector<int> lengths = {1, 511, 512, 513, 0, 1024, 1, 5000, 30};
  Params p;
  p.most_keys = 5000, p.sequences = static_cast<int64_t>(lengths.size());
  int64_t begin = 0, next = 0;
  for (size_t n = 0; n < lengths.size(); ++n) {
    for (int64_t piece = 0; piece < gpu::pieces_of(lengths[n]); ++piece) {
      const int64_t part = gpu::part_of(begin, static_cast<int64_t>(n), piece);
      CHECK(part >= next);
      next = part + 1;
    }
    begin += lengths[n];
  }
  p.tokens_k = begin;
  CHECK(next <= gpu::parts_of(p));
  CHECK(gpu::most_pieces(p) == 10);
  p.most_keys = 512;
  CHECK(gpu::parts_of(p) == 0 && gpu::parts_floats(p) == 0);
}

TEST(what_is_not_finite_reaches_its_own_rows_and_hidden_keys_nobody) {
  Case<BFloat16> clean = in_pieces<BFloat16>({1, 1}, {1100, 1100}, 2, 1, 64, true);
  clean.used = {700, 1100};
  Case<BFloat16> dirty = clean;
  for (int key = 700; key < 1100; ++key) *dirty.value(key, 0) = BFloat16{0x7fff};  // beyond the used ones
  *(dirty.key(1100 + 600, 0) + 3) = BFloat16{0x7fc0};                              // in a second piece
  run(&clean);
  run(&dirty);
  const std::ptrdiff_t row = 2 * 64;
  CHECK(std::equal(clean.out.begin(), clean.out.begin() + row, dirty.out.begin(),
                   [](BFloat16 a, BFloat16 b) { return a.bits == b.bits; }));
  for (auto i = row; i < 2 * row; ++i) CHECK(std::isnan(widen(dirty.out[static_cast<size_t>(i)])));
}

// Around an edge of pieces: the last key of the first one, the first of the second, and one that only the
// last query sees.
TEST(what_is_not_finite_among_values_reaches_the_rows_of_a_prompt_that_see_it) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Case<BFloat16> clean = in_pieces<BFloat16>({5}, {515}, 2, 1, 64, true),
                 dirty = clean;  // token i: key 510 + i
  clean.value(511, 0)[5] = clean.value(512, 0)[6] = clean.value(514, 0)[7] = BFloat16{0};
  dirty.value(511, 0)[5] = dirty.value(514, 0)[7] = number_of<BFloat16>(-kInf);
  dirty.value(512, 0)[6] = BFloat16{0x7fc0};
  run(&clean);
  run(&dirty);
  for (int token = 0; token < 5; ++token) {
    for (int d = 0; d < 64; ++d) {
      const float got = widen(dirty.result(token, 1)[d]);
      const bool seen = (d == 5 && token >= 1) || (d == 6 && token >= 2) || (d == 7 && token >= 4);
      CHECK(!seen    ? dirty.result(token, 1)[d].bits == clean.result(token, 1)[d].bits
            : d == 6 ? std::isnan(got)
                     : got == -kInf);
    }
  }
  CHECK(same_bits(clean.lse, dirty.lse));
  CHECK(chunk_equals(dirty, 0, 1) && chunk_equals(dirty, 3, 4) && chunk_equals(dirty, 1, 3));
}

TEST(more_keys_than_were_promised_are_recorded_and_what_cannot_be_is_named) {
  Case<BFloat16> c = in_pieces<BFloat16>({1, 1}, {600, 1300}, 2, 1, 64, true);
  c.p.most_keys = 700;
  FaultWord word = kNoFault;
  CHECK(run_on_device(&c, &word).ok());
  CHECK(fault(c.p, word).message() ==
        "[attention] seqused_k: expected 0 to the keys of each sequence, got others at sequence 1");
  c.used = {600, 1300};
  CHECK(run_on_device(&c, &word).ok() && fault_of(word).index == 1);
  c.p.most_keys = -1;
  CHECK(run_on_device(&c).message() == "[attention] most_keys: expected at least 0, got -1");
  c.p.most_keys = std::numeric_limits<int64_t>::max();
  c.p.sequences = 2;
  run(&c);  // no grid is larger than the keys there are
}

TEST(path_sm90a_passes_all_of_this_where_it_can_run) {
  if (can_run_sm90a()) pass_again_by_sm90a("path_sm90a_passes_all_of_this_where_it_can_run");
}

TEST(a_forced_tier_is_taken_with_keys_in_pieces_too) {
  if (!can_run_sm90a()) return;
  Case<BFloat16> named = in_pieces<BFloat16>({1, 3}, {600, 520}, 2, 1, 64, true), older = named;
  named.p.path = CudaPath::kSm90a, older.p.path = CudaPath::kSm80;
  Case<BFloat16> forced = named;
  forced.p.path = CudaPath::kBest;
  run(&named);
  run(&older);
  CHECK(force_cuda_tier("sm90a").ok());
  CHECK(run_on_device(&forced).ok());
  CHECK(force_cuda_tier("").ok());
  CHECK(same_results(forced, named) && !same_results(forced, older));

  named.p.schedule = Schedule::kBoth;
  CHECK(run_on_device(&named).message() ==
        "[attention] schedule: expected best or wide where most_keys is given, got another");
}
#endif
