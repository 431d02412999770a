// SPDX-License-Identifier: Apache-2.0
// The CUDA back end of attention against the oracle in float64: on a GPU, or by the emulator. Lengths end
// before, at and behind the ends of tiles (64 or 128 stacked rows, 64 keys).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/attention/attention_plan.h"
#include "tests/cpp/attention_calls.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace attention_calls;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
void compare_shapes(CudaPath path = CudaPath::kBest) {
  for (const bool causal : {false, true}) {
    for (Case<T> c :
         {Case<T>({1, 0, 63, 64, 65}, {1, 5, 63, 64, 65}, 2, 2, 64, causal),
          Case<T>({7, 0, 19, 1}, {7, 0, 19, 129}, 14, 2, 64, causal),
          Case<T>({11, 37}, {130, 37}, 10, 2, 128, causal), Case<T>({5, 13}, {5, 67}, 28, 4, 128, causal),
          Case<T>({129, 3, 2}, {191, 127, 128}, 1, 1, 128, causal)}) {
      c.p.path = path;
      compare(c);
    }
  }
}

template <typename T>
bool chunks_equal(const Case<T>& whole, const std::vector<int>& ends) {
  int begin = 0;
  bool equal = true;
  for (int end : ends) {
    Case<T> chunk = chunk_of(whole, begin, end);
    run(&chunk);
    equal = equal && equals_part(chunk, whole, begin);
    begin = end;
  }
  return equal && begin == whole.p.tokens_q;
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) == std::string::npos) std::printf("'%s' lacks '%s'\n", text.c_str(), part.c_str());
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST(bfloat16_is_within_twice_plain_arithmetic) { compare_shapes<BFloat16>(); }
TEST(float16_is_within_twice_plain_arithmetic) { compare_shapes<Float16>(); }

TEST(huge_and_tiny_scores_are_within_twice_plain_arithmetic) {
  for (const double factor : {1e-6, 30.0, 1e12}) {
    Case<BFloat16> c({40, 3}, {90, 70}, 2, 1, 64, true);
    for (BFloat16& x : c.q) x = number_of<BFloat16>(widen(x) * factor);
    compare(c);
  }
}

TEST(tiles_of_128_rows_of_float16_with_heads_of_64_are_within_twice_plain_arithmetic) {
  compare(Case<Float16>({65}, {66}, 2, 1, 64, true));
}

TEST(a_row_is_the_same_in_chunks_in_tiles_of_either_size_and_again) {
  for (const bool causal : {true, false}) {
    Case<BFloat16> whole({150}, {163}, 2, 1, 64, causal), again = whole, few = whole, many = whole;
    run(&whole);
    run(&again);
    CHECK(same_results(whole, again));
    few.p.tile_rows = 64, many.p.tile_rows = 128;
    run(&few);
    run(&many);
    CHECK(same_results(whole, few) && same_results(whole, many));
    CHECK(chunks_equal(whole, {1, 33, 150}));
    CHECK(chunks_equal(whole, {64, 128, 150}));
  }
  Case<BFloat16> wide({70}, {70}, 7, 1, 128, true);
  run(&wide);
  CHECK(chunks_equal(wide, {13, 69, 70}));
}

TEST(a_sequence_is_the_same_in_any_batch) {
  check_every_sequence_alone(Case<BFloat16>({3, 70, 0, 200, 1}, {3, 140, 9, 200, 65}, 2, 1, 64, true));
  check_every_sequence_alone(Case<Float16>({3, 50, 1}, {130, 50, 65}, 3, 1, 128, true));
  check_every_sequence_alone(Case<BFloat16>({40, 2}, {40, 129}, 4, 2, 128, false));
  check_every_sequence_alone(Case<Float16>({2, 66}, {5, 66}, 2, 2, 64, true));
}

TEST(sequences_of_equal_length_need_no_bounds) {
  Case<BFloat16> bounded({70, 70, 70}, {80, 80, 80}, 2, 1, 64, true), equal = bounded;
  equal.cu_q.clear(), equal.cu_k.clear();
  run(&bounded);
  run(&equal);
  CHECK(same_results(bounded, equal));
}

TEST(keys_beyond_the_used_ones_are_never_read) {
  Case<BFloat16> clean({3, 2}, {70, 5}, 2, 1, 64, false);
  clean.used = {66, 0};
  Case<BFloat16> dirty = clean;
  for (size_t i = 66 * 64; i < dirty.k.size(); ++i) dirty.k[i] = dirty.v[i] = BFloat16{0x7fff};
  run(&clean);
  run(&dirty);
  CHECK(same_results(clean, dirty));
  for (size_t i = 3 * 2 * 64; i < clean.out.size(); ++i) CHECK(clean.out[i].bits == 0);
  for (size_t i = 3 * 2; i < clean.lse.size(); ++i) CHECK(clean.lse[i] == -kInfinity);
}

TEST(a_row_that_sees_no_key_is_0) {
  Case<Float16> c({70}, {6}, 2, 2, 128, true);
  c.k[0] = c.v[5] = Float16{0x7c00};
  run(&c);
  for (int token = 0; token < 64; ++token) {
    for (int d = 0; d < 128; ++d) CHECK(c.result(token, 1)[d].bits == 0);
    CHECK(c.lse[static_cast<size_t>(token) * 2] == -kInfinity);
  }
  compare(Case<Float16>({70}, {6}, 2, 2, 128, true));
}

// NaN and Inf in keys and values reach the rows that see them, in the number where they are, and no bit of
// another.
template <typename T>
static void check_who_sees(int64_t dim, int key, float bad) {
  Case<T> clean({101}, {101}, 2, 1, dim, true), in_values = clean, in_keys = clean;
  *(in_values.value(key, 0) + 5) = number_of<T>(bad);
  for (int64_t d = 0; d < dim; ++d)
    in_keys.key(key, 0)[d] = number_of<T>(std::numeric_limits<float>::quiet_NaN());
  for (Case<T>* c : {&clean, &in_values, &in_keys}) run(c);
  for (int token = 0; token < 101; ++token) {
    for (int64_t d = 0; d < dim; ++d) {
      const uint16_t bits = clean.result(token, 1)[d].bits;
      CHECK(token >= key ? std::isnan(widen(in_keys.result(token, 1)[d]))
                         : in_keys.result(token, 1)[d].bits == bits);
      const float got = widen(in_values.result(token, 1)[d]);
      CHECK(token >= key && d == 5 ? (std::isnan(bad) ? std::isnan(got) : got == bad)
                                   : in_values.result(token, 1)[d].bits == bits);
    }
  }
  CHECK(same_bits(clean.lse, in_values.lse));
  if (!std::isnan(bad)) CHECK(chunks_equal(in_values, {key == 0 ? 1 : key, 101}));
}

TEST(what_a_row_does_not_see_does_not_reach_it) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                  kInf = std::numeric_limits<float>::infinity();
  for (const int key : {0, 20, 63, 64, 100})
    for (const float bad : {kNan, kInf, -kInf}) check_who_sees<BFloat16>(64, key, bad);
  check_who_sees<BFloat16>(128, 64, -kInf);
  check_who_sees<Float16>(128, 20, kNan);
  check_who_sees<Float16>(128, 63, kInf);
}

// Again and again: the emulator draws other orders of the threads each time. On path sm90a the two keys are
// cleared by different warpgroups.
TEST(hidden_values_are_gone_before_anybody_multiplies) {
  Case<BFloat16> clean({25}, {25}, 2, 1, 64, true), dirty = clean;
  dirty.value(5, 0)[5] = dirty.value(20, 0)[6] = BFloat16{0x7fc0};
  run(&clean);
  int wrong = 0;
  for (int repeat = 0; repeat < 150; ++repeat) {
    run(&dirty);
    for (int token = 0; token < 20; ++token) {
      wrong += token < 5 && dirty.result(token, 1)[5].bits != clean.result(token, 1)[5].bits;
      wrong += dirty.result(token, 1)[6].bits != clean.result(token, 1)[6].bits;
    }
  }
  CHECK(wrong == 0);
}

// What a product makes of the weight 0 and Inf, where hidden keys are looked at one by one too.
TEST(a_weight_of_0_makes_nan_of_infinity) {
  Case<BFloat16> c({2}, {2}, 1, 1, 64, true);
  for (int d = 0; d < 64; ++d) {
    c.query(1, 0)[d] = number_of<BFloat16>(0.5);
    c.key(0, 0)[d] = number_of<BFloat16>(-64), c.key(1, 0)[d] = number_of<BFloat16>(64);
  }
  c.value(0, 0)[3] = number_of<BFloat16>(kInfinity);
  run(&c);
  CHECK(widen(c.result(0, 0)[3]) == kInfinity && std::isnan(widen(c.result(1, 0)[3])));
  CHECK(widen(c.result(1, 0)[4]) == widen(c.value(1, 0)[4]));
}

// A key that outweighs all before it, whose values are -0: what was summed is scaled to 0 or -0, and weights
// of 0 make -0 of hidden values below 0. No sign of that is left.
TEST(hidden_values_leave_no_sign_on_a_zero) {
  Case<BFloat16> c({128}, {128}, 1, 1, 64, true);
  for (int d = 0; d < 64; ++d) {
    c.query(64, 0)[d] = number_of<BFloat16>(0.5);
    c.key(64, 0)[d] = number_of<BFloat16>(64);
    c.value(64, 0)[d] = number_of<BFloat16>(-0.0);
    for (int key = 65; key < 128; ++key) c.value(key, 0)[d] = number_of<BFloat16>(-1);
  }
  run(&c);
  for (int d = 0; d < 64; ++d) CHECK(c.result(64, 0)[d].bits == 0);
  CHECK(chunks_equal(c, {65, 128}));
}

TEST(a_query_that_is_not_finite_gives_nan_for_itself) {
  for (const uint16_t bad : {0x7fc0, 0x7f80, 0xff80}) {
    Case<BFloat16> clean({66}, {66}, 2, 1, 64, true), dirty = clean;
    dirty.query(17, 1)[9].bits = bad;
    run(&clean);
    run(&dirty);
    for (int token = 0; token < 66; ++token) {
      for (int head = 0; head < 2; ++head) {
        const bool own = token == 17 && head == 1;
        for (int d = 0; d < 64; ++d)
          CHECK(own ? std::isnan(widen(dirty.result(token, head)[d]))
                    : dirty.result(token, head)[d].bits == clean.result(token, head)[d].bits);
        CHECK(std::isnan(dirty.lse[static_cast<size_t>(token * 2 + head)]) == own);
      }
    }
  }
}

// A score of -inf is a weight of 0; where there is no other, there is no softmax.
TEST(keys_of_minus_infinity_weigh_nothing) {
  Case<BFloat16> c({3}, {130}, 1, 1, 64, false), fewer({3}, {1}, 1, 1, 64, false);
  for (int token = 0; token < 3; ++token) c.query(token, 0)[0] = number_of<BFloat16>(1);
  for (int key = 0; key < 129; ++key) c.key(key, 0)[0] = number_of<BFloat16>(-kInfinity);
  run(&c);
  std::memcpy(fewer.q.data(), c.q.data(), c.q.size() * 2);
  std::memcpy(fewer.k.data(), c.key(129, 0), 128);
  std::memcpy(fewer.v.data(), c.value(129, 0), 128);
  run(&fewer);
  CHECK(same_results(c, fewer));
  c.key(129, 0)[0] = number_of<BFloat16>(-kInfinity);
  run(&c);
  for (BFloat16 x : c.out) CHECK(std::isnan(widen(x)));
  for (double x : c.lse) CHECK(std::isnan(x));
}

// The list that a call leaves in its workspace: every slot's tile once, the longest first, neighbours
// together.
TEST(tiles_are_listed_once_and_the_longest_first) {
  std::vector<int> queries = {200, 3, 0, 77, 131, 1}, keys = {200, 3, 9, 900, 131, 700};
  for (int i = 0; i < 130; ++i) queries.push_back(i % 3), keys.push_back(i * 37 % 200);
  Case<BFloat16> c(queries, keys, 1, 1, 64, true);
  compare(c);
  Params p = c.on_host();
  p.device = Device::kCuda;
  p.path = CudaPath::kSm80;
  const gpu::Plan plan = gpu::plan_of(p);
  CHECK(plan.ordered && workspace_size(p) == static_cast<size_t>(plan.slots) * sizeof(gpu::Tile));
  OnDevice<gpu::Tile> workspace(std::vector<gpu::Tile>(static_cast<size_t>(plan.slots), {-7, -7}));
  OnDevice<int32_t> cu_q(c.cu_q), cu_k(c.cu_k);
  OnDevice<BFloat16> q(c.q), k(c.k), v(c.v), out(c.out);
  p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
  p.q = q.data(), p.k = k.data(), p.v = v.data();
  p.workspace = workspace.data();
  CHECK(forward(p, {out.data(), nullptr}).ok());
  const std::vector<gpu::Tile> listed = workspace.values();

  const Params host = c.on_host();
  std::vector<gpu::Tile> expected;
  for (int kind = gpu::kClasses - 1; kind >= 0; --kind) {
    for (int64_t slot = 0; slot < plan.slots; ++slot) {
      const gpu::Tile tile = gpu::tile_of(host, plan, slot);
      if (gpu::class_of(host, plan, tile) == kind) expected.push_back(tile);
    }
  }
  CHECK(listed.size() == expected.size());
  for (size_t i = 0; i < listed.size(); ++i)
    CHECK(listed[i].sequence == expected[i].sequence && listed[i].block == expected[i].block);
}

TEST(wrong_bounds_are_recorded_and_nothing_outside_is_touched) {
  const auto message = [](const auto& change) {
    Case<BFloat16> c({3, 70, 5}, {3, 70, 9}, 2, 1, 64, true);
    change(c);
    FaultWord word;
    CHECK(run_on_device(&c, &word).ok());
    return fault(c.p, word).message();
  };
  CHECK(message([](auto&) {}).empty());
  CHECK(message([](auto& c) { c.cu_q[0] = -7; }) ==
        "[attention] cu_seqlens_q: expected entries that never decrease, from 0 to 78, got others at "
        "sequence 0");
  CHECK(contains(message([](auto& c) { c.cu_q[1] = 1 << 30; }), "cu_seqlens_q"));
  CHECK(contains(message([](auto& c) { c.cu_q[3] = 79; }), "got others at sequence 2"));
  CHECK(
      contains(message([](auto& c) { c.cu_k[2] = std::numeric_limits<int32_t>::max(); }),
               "cu_seqlens_k: expected entries that never decrease, from 0 to 82, got others at sequence 2"));
  CHECK(contains(message([](auto& c) { c.cu_k[1] = std::numeric_limits<int32_t>::min(); }), "cu_seqlens_k"));
  CHECK(contains(message([](auto& c) { c.used = {3, 71, 9}; }),
                 "seqused_k: expected 0 to the keys of each sequence, got others at sequence 1"));
  CHECK(contains(message([](auto& c) { c.used = {-1, 70, 9}; }), "sequence 0"));
  CHECK(
      contains(message([](auto& c) { c.cu_q.clear(), c.p.tokens_q = 78, c.cu_k[3] = 81; }), "cu_seqlens_k"));

  Case<BFloat16> listed(std::vector<int>(140, 1), std::vector<int>(140, 3), 2, 1, 64, true);
  listed.cu_q[70] = std::numeric_limits<int32_t>::max(), listed.cu_k[9] = -1;
  FaultWord word;
  CHECK(run_on_device(&listed, &word).ok());
  CHECK(contains(fault(listed.p, word).message(), "cu_seqlens_k"));
  CHECK(fault_of(word).index == 8);
}

TEST(what_cuda_does_not_take_is_named) {
  const auto message = [](const auto& change) {
    Case<BFloat16> c({4}, {4}, 2, 2, 64, true);
    change(c.p);
    return run_on_device(&c).message();
  };
  CHECK(contains(message([](Params& p) { p.dim = 96; }),
                 "q: expected a head size of 64 or 128 on cuda, got 96"));
  CHECK(contains(message([](Params& p) { p.type = Type::kFloat32; }),
                 "q: expected bfloat16 or float16 on cuda, got float32"));
  CHECK(contains(message([](Params& p) { p.scale = 1e-40; }), "scale: expected a normal number of float32"));
  CHECK(contains(message([](Params& p) { p.kv_heads = 3; }), "divides q's 2, got 3"));
  CHECK(contains(message([](Params& p) { p.tile_rows = 32; }), "tile_rows: expected 0, 64 or 128, got 32"));

  const std::vector<int> many(130, 1);
  Case<BFloat16> c(many, many, 2, 2, 64, true);
  Params p = c.on_host();
  p.device = Device::kCuda;
  double lse = 0;
  CHECK(contains(forward(p, {c.out.data(), &lse}).message(), "workspace: expected an array, got none"));
  p.q = c.q.data() + 1;
  CHECK(contains(forward(p, {c.out.data(), &lse}).message(), "q: expected an array that begins on 16 bytes"));
  p = c.on_host();
  p.device = Device::kCuda;
  p.cu_seqlens_q = p.cu_seqlens_k = nullptr;  // equal lengths: nothing is read
  p.sequences = 1, p.tokens_q = p.tokens_k = (int64_t{1} << 31) - 1;
  p.heads = p.kv_heads = 1024;
  CHECK(contains(forward(p, {c.out.data(), &lse}).message(),
                 "q: expected fewer than 2^31 tiles and key heads on cuda, got 16777216 x 1024"));
  std::string name;
  CHECK(which(Device::kCuda, Type::kFloat16, 128, &name).ok() &&
        (name == "cuda/sm80" || name == "cuda/sm90a"));
  CHECK(!which(Device::kCuda, Type::kBFloat16, 80, &name).ok());
}

TEST(nothing_to_do_is_fine) {
  Case<BFloat16> none({}, {}, 2, 1, 64, true);
  run(&none);
  Case<BFloat16> empty({0, 0}, {0, 3}, 2, 1, 64, true);
  run(&empty);
  Case<BFloat16> no_keys({5}, {0}, 2, 1, 64, false);
  run(&no_keys);
  for (BFloat16 x : no_keys.out) CHECK(x.bits == 0);
}

TEST(path_sm90a_passes_all_of_this_where_it_can_run) {
  if (!can_run_sm90a()) return;
  compare_shapes<BFloat16>(CudaPath::kSm90a);
  compare_shapes<Float16>(CudaPath::kSm90a);
  pass_again_by_sm90a("path_sm90a_passes_all_of_this_where_it_can_run");
}
#endif
