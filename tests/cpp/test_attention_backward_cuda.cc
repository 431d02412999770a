// SPDX-License-Identifier: Apache-2.0
// The CUDA back end of attention's backward pass against the definition in float64: on a GPU, or by the
// emulator. Lengths end before, at and behind the ends of tiles (64 and 128 stacked rows, 64 and 128 keys).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_backward_plan.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/plain_attention_gradients.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace earnest;
using namespace earnest::attention;
using plain_attention::exact_gradients;
using plain_attention::ExactGradients;
using plain_attention::GradientCase;
using plain_attention::number_of;
using plain_attention::run_backward_on_device;
using plain_attention::run_plain_backward;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

CudaPath path = CudaPath::kSm80;  // of the test that runs

template <typename T>
void run(GradientCase<T>* c) {
  c->p.path = path;
  const Status status = run_backward_on_device(c);
  CHECK(status.ok());
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
}

template <typename T>
double largest_error(const std::vector<T>& got, const std::vector<double>& right) {
  double largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(widen(got[i]) - right[i]);
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
  return largest;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <typename T>
bool same_results(const GradientCase<T>& a, const GradientCase<T>& b) {
  return same_bits(a.grad_q, b.grad_q) && same_bits(a.grad_k, b.grad_k) && same_bits(a.grad_v, b.grad_v);
}

// At most twice the error of plain arithmetic, for each gradient.
template <typename T>
void compare(GradientCase<T> c) {
  GradientCase<T> plain = c;
  const ExactGradients right = exact_gradients(&c);
  run_plain_backward(&plain);
  run(&c);
  const int before = check::failures();
  CHECK_NEAR(largest_error(c.grad_q, right.q), 0, 2 * largest_error(plain.grad_q, right.q));
  CHECK_NEAR(largest_error(c.grad_k, right.k), 0, 2 * largest_error(plain.grad_k, right.k));
  CHECK_NEAR(largest_error(c.grad_v, right.v), 0, 2 * largest_error(plain.grad_v, right.v));
  if (check::failures() != before) {
    std::printf("  of %lld heads, %lld key heads, dim %lld, %lld sequences, %lld queries, %lld keys, %s\n",
                static_cast<long long>(c.p.heads), static_cast<long long>(c.p.kv_heads),
                static_cast<long long>(c.p.dim), static_cast<long long>(c.p.sequences),
                static_cast<long long>(c.p.tokens_q), static_cast<long long>(c.p.tokens_k),
                c.p.causal ? "causal" : "full");
  }
}

// Of either type, each with both sizes of heads.
template <typename T>
void compare_shapes() {
  for (const bool causal : {false, true}) {
    compare(GradientCase<T>({1, 0, 63, 64, 65}, {1, 5, 63, 64, 65}, 2, 2, 64, causal));
    compare(GradientCase<T>({5, 13}, {5, 67}, 28, 4, 128, causal));
  }
}
// More, nearly all of one: the types differ in how numbers are rounded and multiplied, not in where they are.
void compare_more_shapes() {
  for (const bool causal : {false, true}) {
    compare(GradientCase<BFloat16>({7, 0, 19, 1}, {7, 0, 19, 129}, 14, 2, 64, causal, true));
    compare(GradientCase<BFloat16>({128, 2}, {128, 127}, 1, 1, 64, causal));
    compare(GradientCase<BFloat16>({11, 37}, {130, 37}, 7, 7, 128, causal, true));
    compare(GradientCase<BFloat16>({129}, {191}, 1, 1, 128, causal));
  }
  compare(GradientCase<Float16>({65}, {66}, 2, 1, 64, true));  // tiles of 128 rows
}

template <typename T>
std::vector<T> part_of(const std::vector<T>& x, int begin, int count, int width) {
  const auto first = x.begin() + begin * width;
  return std::vector<T>(first, first + count * width);
}

// By each path that the device has.
void run_by_paths(void (*test)()) {
  test();
  path = CudaPath::kSm90a;
  GradientCase<BFloat16> any({1}, {1}, 1, 1, 64, true);
  any.p.path = path;
  const Status status = run_backward_on_device(&any);
  if (status.ok()) {
    test();
  } else {
    CHECK(status.message().find("path: expected sm90a on compute capability 9.0, got ") != std::string::npos);
  }
  path = CudaPath::kSm80;
}
#define TEST_BY_PATHS(name)                    \
  static void by_path_##name();                \
  TEST(name) { run_by_paths(by_path_##name); } \
  static void by_path_##name()

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) == std::string::npos) std::printf("'%s' lacks '%s'\n", text.c_str(), part.c_str());
  return text.find(part) != std::string::npos;
}

// A number that is not finite, of which token: within tiles and at their ends.
struct Bad {
  int64_t dim;
  int token;
  float number;
};
std::vector<Bad> bad_numbers() {
  std::vector<Bad> all;
  for (const int token : {1, 20, 63, 64, 100})
    for (const float number : {kNan, kInfinity, -kInfinity}) all.push_back({64, token, number});
  all.insert(all.end(), {{64, 0, kNan}, {128, 20, kInfinity}, {128, 64, kNan}});
  return all;
}

// 101 tokens that are all finite, of a head of 64 or 128: each run once by the path of the test.
class CleanCases {
 public:
  CleanCases() {
    for (GradientCase<BFloat16>* c : {&of_64_, &of_128_}) run(c);
  }
  const GradientCase<BFloat16>& of(int64_t dim) const { return dim == 64 ? of_64_ : of_128_; }

 private:
  GradientCase<BFloat16> of_64_{{101}, {101}, 1, 1, 64, true}, of_128_{{101}, {101}, 1, 1, 128, true};
};

// Whether all `count` numbers are NaN, or have the bits of those of the clean run.
bool all_nan(const BFloat16* x, int count) {
  for (int d = 0; d < count; ++d)
    if (!std::isnan(widen(x[d]))) return false;
  return true;
}
bool equal(const BFloat16* a, const BFloat16* b, int count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(BFloat16)) == 0;
}

}  // namespace

TEST_BY_PATHS(bfloat16_is_within_twice_plain_arithmetic) { compare_shapes<BFloat16>(); }
TEST_BY_PATHS(more_shapes_are_within_twice_plain_arithmetic) { compare_more_shapes(); }
TEST_BY_PATHS(float16_is_within_twice_plain_arithmetic) { compare_shapes<Float16>(); }

TEST_BY_PATHS(huge_and_tiny_scores_are_within_twice_plain_arithmetic) {
  for (const double factor : {1e-6, 30.0, 1e12}) {
    GradientCase<BFloat16> c({40, 3}, {90, 70}, 2, 1, 64, true);
    for (BFloat16& x : c.q) x = number_of<BFloat16>(widen(x) * factor);
    compare(c);
  }
}

// What float32 cannot hold of a huge lse is the logarithm of how many keys share the weight.
TEST_BY_PATHS(keys_that_tie_at_huge_scores_share_the_weight) {
  GradientCase<BFloat16> c({40, 3}, {90, 70}, 2, 1, 64, true);
  for (BFloat16& x : c.q) x = number_of<BFloat16>(widen(x) * 1e12);
  for (int64_t key = 0; key < 160; key += 2) std::memcpy(c.key(key + 1, 0), c.key(key, 0), 128);
  compare(c);
}

TEST_BY_PATHS(a_scale_far_from_1_is_within_twice_plain_arithmetic) {
  for (const double scale : {1e-37, 1e-3, 40.0}) {
    GradientCase<BFloat16> c({40}, {70}, 2, 1, 64, true);
    c.p.scale = scale;
    compare(c);
  }
}

TEST_BY_PATHS(gradients_are_the_same_in_tiles_of_either_size_and_again) {
  for (const int64_t dim : {64, 128}) {
    GradientCase<BFloat16> whole({150}, {163}, 2, 1, dim, true), again = whole, few = whole, many = whole;
    few.p.tile_rows = 64, many.p.tile_rows = 128;
    for (GradientCase<BFloat16>* c : {&whole, &again, &few, &many}) run(c);
    CHECK(same_results(whole, again));
    CHECK(same_results(whole, few) && same_results(whole, many));
  }
}

// What keys get depends on who sees them; what queries get does not depend on the queries around them.
TEST_BY_PATHS(gradients_of_queries_are_the_same_in_chunks) {
  GradientCase<BFloat16> whole({150}, {163}, 2, 1, 64, true);
  run(&whole);
  std::vector<BFloat16> joined;
  for (int begin = 0; const int end : {1, 33, 128, 150}) {
    GradientCase<BFloat16> chunk({end - begin}, {163}, 2, 1, 64, true);
    chunk.q = part_of(whole.q, begin, end - begin, 128);
    chunk.grad_out = part_of(whole.grad_out, begin, end - begin, 128);
    chunk.k = whole.k, chunk.v = whole.v, chunk.used = {end + 13};
    run(&chunk);
    joined.insert(joined.end(), chunk.grad_q.begin(), chunk.grad_q.end());
    begin = end;
  }
  CHECK(same_bits(joined, whole.grad_q));
}

TEST_BY_PATHS(a_sequence_is_the_same_in_any_batch) {
  GradientCase<BFloat16> batch({3, 70, 0, 200, 1}, {3, 140, 9, 200, 65}, 2, 1, 64, true, true);
  run(&batch);
  for (size_t n = 0; n < 5; ++n) {
    const int queries = batch.cu_q[n + 1] - batch.cu_q[n], keys = batch.cu_k[n + 1] - batch.cu_k[n];
    GradientCase<BFloat16> alone({queries}, {keys}, 2, 1, 64, true, true);
    alone.q = part_of(batch.q, batch.cu_q[n], queries, 128);
    alone.grad_out = part_of(batch.grad_out, batch.cu_q[n], queries, 128);
    alone.grad_lse = part_of(batch.grad_lse, batch.cu_q[n], queries, 2);
    alone.k = part_of(batch.k, batch.cu_k[n], keys, 64);
    alone.v = part_of(batch.v, batch.cu_k[n], keys, 64);
    run(&alone);
    CHECK(same_bits(alone.grad_q, part_of(batch.grad_q, batch.cu_q[n], queries, 128)));
    CHECK(same_bits(alone.grad_k, part_of(batch.grad_k, batch.cu_k[n], keys, 64)));
    CHECK(same_bits(alone.grad_v, part_of(batch.grad_v, batch.cu_k[n], keys, 64)));
  }
}

TEST_BY_PATHS(sequences_of_equal_length_need_no_bounds) {
  GradientCase<BFloat16> bounded({70, 70, 70}, {80, 80, 80}, 2, 1, 64, true), equal_lengths = bounded;
  equal_lengths.cu_q.clear(), equal_lengths.cu_k.clear();
  run(&bounded);
  run(&equal_lengths);
  CHECK(same_results(bounded, equal_lengths));
}

TEST_BY_PATHS(keys_beyond_the_used_ones_are_never_read_and_have_gradients_of_0) {
  for (const bool causal : {false, true}) {
    GradientCase<BFloat16> clean({3, 2, 4}, {70, 5, 200}, 2, 1, 64, causal);
    clean.used = {66, 0, 3};
    GradientCase<BFloat16> dirty = clean;
    const auto is_used = [](size_t i) { return i < 66 * 64 || (i >= 75 * 64 && i < 78 * 64); };
    for (size_t i = 0; i < dirty.k.size(); ++i)
      if (!is_used(i)) dirty.k[i] = dirty.v[i] = BFloat16{0x7fff};
    run(&clean);
    run(&dirty);
    CHECK(same_results(clean, dirty));
    for (size_t i = 0; i < clean.k.size(); ++i)
      CHECK(is_used(i) || (clean.grad_k[i].bits == 0 && clean.grad_v[i].bits == 0));
    for (size_t i = 3 * 128; i < 5 * 128; ++i) CHECK(clean.grad_q[i].bits == 0);
  }
}

TEST_BY_PATHS(a_row_that_sees_no_key_has_and_gives_gradients_of_0) {
  GradientCase<Float16> clean({70}, {6}, 2, 2, 128, true, true), dirty = clean;
  for (size_t i = 0; i < 64 * 2 * 128; ++i) dirty.q[i] = dirty.grad_out[i] = Float16{0x7e00};
  for (size_t i = 0; i < 64 * 2; ++i) dirty.grad_lse[i] = std::numeric_limits<double>::quiet_NaN();
  run(&clean);
  run(&dirty);
  CHECK(same_results(clean, dirty));
  for (size_t i = 0; i < 64 * 2 * 128; ++i) CHECK(clean.grad_q[i].bits == 0);
  compare(clean);
}

// NaN and Inf of a query reach what it sees: the gradients of those keys, and its own. Not a bit of another.
TEST_BY_PATHS(a_query_that_is_not_finite_reaches_what_it_sees) {
  const CleanCases cases;
  for (const auto& [dim, token, bad] : bad_numbers()) {
    const GradientCase<BFloat16>& clean = cases.of(dim);
    GradientCase<BFloat16> dirty = clean;
    dirty.query(token, 0)[5] = number_of<BFloat16>(bad);
    run(&dirty);
    const int count = static_cast<int>(dim);
    for (int i = 0; i < 101; ++i) {
      const auto spoiled = [&](const std::vector<BFloat16>& x) { return all_nan(dirty.row(x, i, 0), count); };
      CHECK(i == token ? spoiled(dirty.grad_q)
                       : equal(dirty.row(dirty.grad_q, i, 0), clean.row(clean.grad_q, i, 0), count));
      for (const auto member : {&GradientCase<BFloat16>::grad_k, &GradientCase<BFloat16>::grad_v}) {
        CHECK(i <= token ? spoiled(dirty.*member)
                         : equal(dirty.row(dirty.*member, i, 0), clean.row(clean.*member, i, 0), count));
      }
    }
  }
}

// Of a gradient, likewise, and in the gradients of values only in the number where they are.
TEST_BY_PATHS(a_gradient_that_is_not_finite_reaches_what_its_row_sees) {
  const CleanCases cases;
  for (const auto& [dim, token, bad] : bad_numbers()) {
    const GradientCase<BFloat16>& clean = cases.of(dim);
    GradientCase<BFloat16> dirty = clean;
    dirty.grad_out[static_cast<size_t>(token * dim + 5)] = number_of<BFloat16>(bad);
    run(&dirty);
    const int count = static_cast<int>(dim);
    for (int i = 0; i < 101; ++i) {
      CHECK(i == token || equal(dirty.row(dirty.grad_q, i, 0), clean.row(clean.grad_q, i, 0), count));
      CHECK(i <= token || equal(dirty.row(dirty.grad_k, i, 0), clean.row(clean.grad_k, i, 0), count));
      for (int d = 0; d < count; ++d) {
        CHECK(i != token || !std::isfinite(widen(dirty.row(dirty.grad_q, i, 0)[d])));
        CHECK(i > token || !std::isfinite(widen(dirty.row(dirty.grad_k, i, 0)[d])));
        const BFloat16 got = dirty.row(dirty.grad_v, i, 0)[d];
        CHECK(i <= token && d == 5 ? (std::isnan(bad) ? std::isnan(widen(got)) : widen(got) == bad)
                                   : got.bits == clean.row(clean.grad_v, i, 0)[d].bits);
      }
    }
  }
}

// Of keys and values they reach the rows that see them, and through those all keys but for gradients of
// values.
TEST_BY_PATHS(a_key_or_value_that_is_not_finite_does_not_reach_rows_before_it) {
  const CleanCases cases;
  for (const auto& [dim, key, bad] : bad_numbers()) {
    const GradientCase<BFloat16>& clean = cases.of(dim);
    GradientCase<BFloat16> in_key = clean, in_value = clean;
    in_key.key(key, 0)[5] = number_of<BFloat16>(bad);
    in_value.value(key, 0)[5] = number_of<BFloat16>(bad);
    for (GradientCase<BFloat16>* c : {&in_key, &in_value}) run(c);
    const int count = static_cast<int>(dim);
    for (int i = 0; i < key; ++i) {
      for (const GradientCase<BFloat16>* c : {&in_key, &in_value})
        CHECK(equal(c->row(c->grad_q, i, 0), clean.row(clean.grad_q, i, 0), count));
    }
    for (int i = key; i < 101; ++i)
      CHECK(std::isnan(widen(in_key.row(in_key.grad_q, i, 0)[5])) &&
            all_nan(in_value.row(in_value.grad_q, i, 0), count));
    CHECK(same_bits(in_value.grad_v, clean.grad_v));
  }
}

// A key of -inf weighs nothing: nobody's gradient but that of its own number, which is 0 times it, is
// spoiled; neither where rows see the tile whole, nor by those of a tile that are not there.
TEST_BY_PATHS(keys_of_minus_infinity_get_gradients_of_0) {
  for (const bool causal : {false, true}) {
    for (const int queries : {3, 64, 130}) {
      GradientCase<BFloat16> c({queries}, {queries + 130}, 1, 1, 64, causal);
      for (int token = 0; token < queries; ++token) c.query(token, 0)[0] = number_of<BFloat16>(1);
      for (const int key : {0, 77}) c.key(key, 0)[0] = number_of<BFloat16>(-kInfinity);
      run(&c);
      for (int key = 0; key < queries + 130; ++key) {
        for (int d = 0; d < 64; ++d) {
          const float k = widen(c.key_row(c.grad_k, key, 0)[d]), v = widen(c.key_row(c.grad_v, key, 0)[d]);
          CHECK(key == 0 || key == 77 ? k == 0 && v == 0 : std::isfinite(k) && std::isfinite(v));
        }
      }
      for (int token = 0; token < queries; ++token) {
        for (int d = 0; d < 64; ++d) {
          const float q = widen(c.row(c.grad_q, token, 0)[d]);
          CHECK(d == 0 ? std::isnan(q) : std::isfinite(q));
        }
      }
    }
  }
}

// Again and again: the emulator draws other orders of the threads each time.
TEST_BY_PATHS(orders_of_threads_change_nothing) {
  for (const int64_t dim : {64, 128}) {
    GradientCase<BFloat16> first({70, 131}, {70, 140}, 2, 1, dim, true);
    first.grad_out[9] = number_of<BFloat16>(kNan);
    run(&first);
    for (int repeat = 0; repeat < 3; ++repeat) {
      GradientCase<BFloat16> again = first;
      run(&again);
      CHECK(same_results(first, again));
    }
  }
}

// The lists that a call leaves in its workspace: every slot's tile once, the longest first.
TEST(tiles_are_listed_once_and_the_longest_first) {
  std::vector<int> queries = {200, 3, 0, 77, 131, 1}, keys = {200, 3, 9, 900, 131, 700};
  for (int i = 0; i < 130; ++i) queries.push_back(i % 3), keys.push_back(i * 37 % 200);
  GradientCase<BFloat16> c(queries, keys, 1, 1, 64, true);
  compare(c);
  const Params host = c.on_host();
  Params p = host;
  p.device = Device::kCuda;
  const gpu::BackwardPlan plan = gpu::backward_plan_of(p, 99 << 10);
  CHECK(plan.rows.ordered && plan.keys.ordered && backward_workspace_size(p) == plan.bytes);
  OnDevice<char> workspace(std::vector<char>(plan.bytes, 7));
  OnDevice<int32_t> cu_q(c.cu_q), cu_k(c.cu_k);
  OnDevice<BFloat16> q(c.q), k(c.k), v(c.v), out(c.q), grad_out(c.q), grad_q(c.q), grad_k(c.k), grad_v(c.v);
  OnDevice<double> lse(c.lse);
  p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
  p.q = q.data(), p.k = k.data(), p.v = v.data();
  p.workspace = workspace.data();
  CHECK(backward(p, {out.data(), lse.data(), grad_out.data(), nullptr, grad_q.data(), grad_k.data(),
                     grad_v.data()})
            .ok());
  const std::vector<char> left = workspace.values();

  const Params by_keys = gpu::with_keys_as_rows(host);
  const auto check_list = [&](const gpu::Plan& of, size_t begin, const auto& tile_at, const auto& kind_of) {
    std::vector<gpu::Tile> listed(static_cast<size_t>(of.slots));
    std::memcpy(listed.data(), left.data() + begin, listed.size() * sizeof(gpu::Tile));
    size_t at = 0;
    for (int kind = gpu::kClasses - 1; kind >= 0; --kind) {
      for (int64_t slot = 0; slot < of.slots; ++slot) {
        const gpu::Tile tile = tile_at(slot);
        if (kind_of(tile) != kind) continue;
        CHECK(listed[at].sequence == tile.sequence && listed[at].block == tile.block);
        ++at;
      }
    }
    CHECK(at == listed.size());
  };
  check_list(
      plan.rows, plan.row_list, [&](int64_t slot) { return gpu::tile_of(host, plan.rows, slot); },
      [&](const gpu::Tile& tile) { return gpu::class_of(host, plan.rows, tile); });
  check_list(
      plan.keys, plan.key_list, [&](int64_t slot) { return gpu::key_tile_of(by_keys, plan.keys, slot); },
      [&](const gpu::Tile& tile) { return gpu::class_of_keys(host, plan.keys, tile); });
}

TEST_BY_PATHS(wrong_bounds_are_recorded_and_nothing_outside_is_touched) {
  const auto message = [](const std::function<void(GradientCase<BFloat16>&)>& change) {
    GradientCase<BFloat16> c({3, 7, 5}, {3, 7, 9}, 2, 1, 64, true);
    change(c);
    c.p.path = path;
    FaultWord word;
    CHECK(run_backward_on_device(&c, &word).ok());
    return fault(c.p, word).message();
  };
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max(), kLeast = std::numeric_limits<int32_t>::min();
  CHECK(message([](auto&) {}).empty());
  CHECK(contains(message([](auto& c) { c.cu_q[1] = 1 << 30; }), "cu_seqlens_q: expected entries"));
  CHECK(contains(message([](auto& c) { c.cu_q[3] = 16; }), "got others at sequence 2"));
  CHECK(contains(message([](auto& c) { c.cu_q[0] = -7; }), "sequence 0"));
  CHECK(contains(message([](auto& c) { c.cu_k[2] = kMost; }), "cu_seqlens_k"));
  CHECK(contains(message([](auto& c) { c.cu_k[1] = kLeast; }), "cu_seqlens_k"));
  CHECK(contains(message([](auto& c) { c.used = {3, 8, 9}; }), "seqused_k: expected 0 to the keys"));
  CHECK(contains(message([](auto& c) { c.used = {-1, 7, 9}; }), "sequence 0"));

  GradientCase<BFloat16> listed(std::vector<int>(140, 1), std::vector<int>(140, 3), 2, 1, 64, true);
  listed.cu_q[70] = kMost, listed.cu_k[9] = -1;
  listed.p.path = path;
  FaultWord word;
  CHECK(run_backward_on_device(&listed, &word).ok());
  CHECK(contains(fault(listed.p, word).message(), "cu_seqlens_k"));
  CHECK(fault_of(word).index == 8);
}

TEST(what_is_not_taken_is_named) {
  GradientCase<BFloat16> c({4}, {4}, 2, 2, 64, true);
  Params p = c.on_host();
  p.device = Device::kCuda;
  double lse[8];
  alignas(16) char workspace[8 * sizeof(gpu::RowNumbers)];
  Gradients g{c.out.data(),   lse, c.grad_out.data(), nullptr, c.grad_q.data(), c.grad_k.data(),
              c.grad_v.data()};
  CHECK(backward_workspace_size(p) == sizeof workspace);
  CHECK(contains(backward(p, g).message(), "workspace: expected an array, got none"));
  p.workspace = workspace;
  g.grad_v = nullptr;
  CHECK(contains(backward(p, g).message(), "grad_v: expected an array, got none"));
  g.grad_v = c.grad_v.data() + 1;
  CHECK(contains(backward(p, g).message(), "grad_v: expected an array that begins on 16 bytes on cuda"));
  g.grad_v = c.grad_v.data();
  p.type = Type::kFloat32;
  CHECK(contains(backward(p, g).message(), "q: expected bfloat16 or float16 on cuda, got float32"));
  p.type = Type::kBFloat16;
  p.cu_seqlens_q = p.cu_seqlens_k = nullptr;  // equal lengths: nothing is read
  p.tokens_q = p.tokens_k = int64_t{1} << 30;
  p.heads = 4;
  CHECK(contains(backward(p, g).message(), "q: expected fewer than 2^31 tokens times heads of a key head"));
  p.heads = p.kv_heads = 1024;
  CHECK(
      contains(backward(p, g).message(), "fewer than 2^31 tiles and key heads on cuda, got 8388608 x 1024"));
}

TEST_BY_PATHS(nothing_to_do_is_fine) {
  GradientCase<BFloat16> none({}, {}, 2, 1, 64, true);
  run(&none);
  GradientCase<BFloat16> no_queries({0, 0}, {0, 70}, 2, 1, 64, true);
  run(&no_queries);
  for (size_t i = 0; i < no_queries.grad_k.size(); ++i)
    CHECK(no_queries.grad_k[i].bits == 0 && no_queries.grad_v[i].bits == 0);
  GradientCase<BFloat16> no_keys({5}, {0}, 2, 1, 64, false);
  run(&no_keys);
  for (BFloat16 x : no_keys.grad_q) CHECK(x.bits == 0);
}
#endif
