// SPDX-License-Identifier: Apache-2.0
// The CUDA back end of log-probabilities against plain loops in float64: on a GPU, or by the emulator. Sizes
// end before, at and behind the ends of tiles, parts and chunks.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/common/cuda.h"
#include "kernels/logprob/logprob.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/plain_logprob.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace earnest;
using namespace earnest::logprob;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// All of one problem on the host: inputs, and results of whoever ran it.
template <typename Stored>
using Case = PlainCase<Stored>;

struct Options {
  int64_t scratch = int64_t{64} << 20;
  bool hidden_wanted = true, weight_wanted = true;
  int64_t shift = 0;  // elements by which arrays begin past an aligned address
  CudaPath path = CudaPath::kBest;
};

CudaPath path_of_all = CudaPath::kBest;  // of cases that name none, where it takes them

template <typename Stored>
bool takes_path_of_all(const Case<Stored>& c) {
  return sizeof(Stored) == 2 && c.problem.depth % 8 == 0;
}
// It would only run as it has before.
template <typename Stored>
bool is_repeated(const Case<Stored>& c) {
  return path_of_all != CudaPath::kBest && !takes_path_of_all(c);
}

// `values` on the device, `shift` elements past where memory begins.
template <typename T>
class Array {
 public:
  Array(const std::vector<T>& values, int64_t shift) : array_(shifted(values, shift)), shift_(shift) {}
  T* data() { return array_.data() + shift_; }
  std::vector<T> values() const {
    const std::vector<T> all = array_.values();
    return {all.begin() + shift_, all.end()};
  }

 private:
  static std::vector<T> shifted(const std::vector<T>& values, int64_t shift) {
    std::vector<T> all(static_cast<size_t>(shift));
    all.insert(all.end(), values.begin(), values.end());
    return all;
  }
  OnDevice<T> array_;
  int64_t shift_;
};

// The workspace is exactly as large as stated, and full of NaN.
template <typename Job>
Status run_in_dirt(const Job& job) {
  OnDevice<unsigned char> workspace(std::vector<unsigned char>(workspace_size(job), 0xff));
  return run(job, workspace.data());
}

// All bits 1: NaN. What is written may hold anything before.
template <typename T>
void soil(std::vector<T>* values) {
  if (!values->empty()) std::memset(values->data(), 0xff, values->size() * sizeof(T));
}

// Runs both directions on the device; results replace those of the case. Returns the word of faults.
template <typename Stored>
FaultWord run_on_device(Case<Stored>* c, const Options& options = {}) {
  using Row = typename Case<Stored>::Row;
  const int64_t shift = options.shift;
  for (auto* rows : {&c->logp, &c->entropy, &c->lse}) soil(rows);
  if (options.hidden_wanted) soil(&c->grad_hidden);
  if (options.weight_wanted) soil(&c->grad_weight);
  Array<Stored> hidden(c->hidden, shift), weight(c->weight, shift), grad_hidden(c->grad_hidden, shift),
      grad_weight(c->grad_weight, shift);
  OnDevice<int64_t> targets(c->targets);
  OnDevice<FaultWord> fault(std::vector<FaultWord>{kNoFault});
  OnDevice<Row> logp(c->logp), entropy(c->entropy), lse(c->lse), grad_logp(c->grad_logp),
      grad_entropy(c->grad_entropy), grad_lse(c->grad_lse);

  Forward f;
  f.problem = c->problem;
  f.problem.hidden = hidden.data();
  f.problem.weight = weight.data();
  f.problem.targets = targets.data();
  f.problem.device = Device::kCuda;
  f.problem.fault = fault.data();
  f.problem.path = options.path;
  if (options.path == CudaPath::kBest && takes_path_of_all(*c) && shift == 0) f.problem.path = path_of_all;
  f.logp = logp.data();
  f.entropy = entropy.data();
  f.lse = lse.data();
  const Status forward = run_in_dirt(f);
  CHECK(forward.ok());
  if (!forward.ok()) std::printf("%s\n", forward.message().c_str());

  Backward b;
  b.problem = f.problem;
  b.entropy = entropy.data();
  b.lse = lse.data();
  if (!c->grad_logp.empty()) b.grad_logp = grad_logp.data();
  if (!c->grad_entropy.empty()) b.grad_entropy = grad_entropy.data();
  if (!c->grad_lse.empty()) b.grad_lse = grad_lse.data();
  if (options.hidden_wanted) b.grad_hidden = grad_hidden.data();
  if (options.weight_wanted) b.grad_weight = grad_weight.data();
  b.scratch = options.scratch;
  const Status backward = run_in_dirt(b);
  CHECK(backward.ok());
  if (!backward.ok()) std::printf("%s\n", backward.message().c_str());

  c->logp = logp.values();
  c->entropy = entropy.values();
  c->lse = lse.values();
  c->grad_hidden = grad_hidden.values();
  c->grad_weight = grad_weight.values();
  return fault.values()[0];
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
template <typename Stored>
bool same_results(const Case<Stored>& a, const Case<Stored>& b) {
  return same_bits(a.logp, b.logp) && same_bits(a.entropy, b.entropy) && same_bits(a.lse, b.lse);
}
template <typename Stored>
bool same_gradients(const Case<Stored>& a, const Case<Stored>& b) {
  return same_bits(a.grad_hidden, b.grad_hidden) && same_bits(a.grad_weight, b.grad_weight);
}

// At most twice the error of plain arithmetic in float (float64), and a few units in the last place: of
// float32, and for gradients in bfloat16 a quarter of its own, since dS is rounded for the products too.
template <typename Stored>
void check_budget(const Case<Stored>& got, const Case<double>& oracle, const Case<Stored>& plain) {
  const double floor = sizeof(Stored) == 8 ? 1e-13 : 2e-6,
               of_gradients = sizeof(Stored) == 2 ? 0x1p-11 : floor;
  const auto budget = [&](const auto& by_plain, const auto& right, double more) {
    return 2 * largest_error(by_plain, right) + more;
  };
  CHECK_NEAR(largest_error(got.logp, oracle.logp), 0, budget(plain.logp, oracle.logp, floor));
  CHECK_NEAR(largest_error(got.entropy, oracle.entropy), 0, budget(plain.entropy, oracle.entropy, floor));
  CHECK_NEAR(largest_error(got.lse, oracle.lse), 0, budget(plain.lse, oracle.lse, floor));
  CHECK_NEAR(largest_error(got.grad_hidden, oracle.grad_hidden), 0,
             budget(plain.grad_hidden, oracle.grad_hidden, of_gradients));
  CHECK_NEAR(largest_error(got.grad_weight, oracle.grad_weight), 0,
             budget(plain.grad_weight, oracle.grad_weight, of_gradients));
}

template <typename Stored>
void compare(Case<Stored> c, const Options& options = {}) {
  if (is_repeated(c)) return;
  Case<Stored> plain = c;
  run_plain(&plain);
  CHECK(run_on_device(&c, options) == kNoFault);
  const int before = check::failures();
  check_budget(c, exact_of(c), plain);
  if (check::failures() != before) {
    std::printf("  of N %lld, H %lld, V %lld, temperature %g\n", static_cast<long long>(c.problem.rows),
                static_cast<long long>(c.problem.depth), static_cast<long long>(c.problem.vocabulary),
                c.problem.temperature);
  }
}

struct Shape {
  int64_t rows, depth, vocabulary;
};

template <typename Stored>
void compare_shapes(const std::vector<Shape>& shapes) {
  for (const Shape& s : shapes) compare(Case<Stored>(s.rows, s.depth, s.vocabulary, 0.7));
}

// The ends of tiles (128 rows and columns) and of a step along the depth (64 bfloat16, 32 float32, 16
// float64).
const std::vector<Shape> kTiles = {{1, 1, 1},      {3, 5, 2},    {127, 31, 129},
                                   {129, 65, 127}, {2, 401, 11}, {5, 16, 130}};

}  // namespace

TEST(bfloat16_is_within_twice_plain_arithmetic) {
  compare_shapes<BFloat16>(kTiles);
  compare_shapes<BFloat16>({{128, 64, 128}, {257, 136, 300}});
  compare_shapes<BFloat16>({{3, 33, 2048}, {5, 8, 4099}});  // parts of 2048 columns
}
TEST(float32_is_within_twice_plain_arithmetic) { compare_shapes<float>(kTiles); }
TEST(float64_is_within_twice_plain_arithmetic) { compare_shapes<double>(kTiles); }

TEST(every_path_that_can_run_is_within_twice_plain_arithmetic) {
  cuda::Properties device;
  CHECK(cuda::properties("test", &device).ok());
  for (CudaPath path : {CudaPath::kSm80, CudaPath::kSm90a}) {
    Case<BFloat16> any(1, 8, 1, 1.0);
    any.problem.device = Device::kCuda;
    any.problem.path = path;
    std::string name;
    const bool runs = which(any.problem, &name).ok();
    CHECK(runs == (path == CudaPath::kSm80 || device.runs_sm90a));
    if (!runs) continue;
    // The ends of sm90a's tiles (256 by 256 in steps of 64) and parts (1024); others come with all tests.
    compare(Case<BFloat16>(130, 64, 255, 0.7), {.path = path});
    compare(Case<BFloat16>(9, 136, 1040, 0.7), {.scratch = 0, .path = path});
  }
}

TEST(chunks_change_no_bit) {
  // Of 25 rows grad_weight has room for two chunks of 512 columns, and 256, 256 and 29 go to the workspace;
  // without grad_weight all go there, 256 at a time.
  const auto compare_chunks = [](auto whole) {
    if (is_repeated(whole)) return;
    auto in_gradient = whole, in_workspace = whole;
    run_on_device(&whole);
    run_on_device(&in_gradient, {.scratch = 0});
    run_on_device(&in_workspace, {.scratch = 0, .weight_wanted = false});
    CHECK(same_gradients(whole, in_gradient));
    CHECK(same_bits(whole.grad_hidden, in_workspace.grad_hidden));
  };
  compare_chunks(Case<BFloat16>(25, 24, 1565, 1.0));
  // 768 in grad_weight, 150 in the workspace.
  compare_chunks(Case<BFloat16>(10, 61, 918, 1.0));
  compare_chunks(Case<float>(10, 61, 918, 1.0));
}

TEST(a_row_alone_equals_the_row_in_a_batch) {
  const auto compare_rows = [](auto batch) {
    if (is_repeated(batch)) return;
    using C = decltype(batch);
    const auto depth = static_cast<size_t>(batch.problem.depth);
    run_on_device(&batch, {.scratch = 0, .weight_wanted = false});
    for (size_t row : {8u, 127u, 130u}) {
      C alone(1, batch.problem.depth, batch.problem.vocabulary, batch.problem.temperature);
      alone.weight = batch.weight;
      std::copy_n(batch.hidden.begin() + static_cast<int64_t>(row * depth), depth, alone.hidden.begin());
      alone.targets[0] = batch.targets[row];
      alone.grad_logp[0] = batch.grad_logp[row];
      alone.grad_entropy[0] = batch.grad_entropy[row];
      alone.grad_lse[0] = batch.grad_lse[row];
      run_on_device(&alone, {.weight_wanted = false});
      CHECK(alone.logp[0] == batch.logp[row] && alone.entropy[0] == batch.entropy[row]);
      CHECK(alone.lse[0] == batch.lse[row]);
      CHECK(std::memcmp(alone.grad_hidden.data(), batch.grad_hidden.data() + row * depth,
                        depth * sizeof(batch.grad_hidden[0])) == 0);
    }
  };
  compare_rows(Case<BFloat16>(131, 24, 2100, 1.3));
  compare_rows(Case<float>(131, 21, 300, 1.3));
}

TEST(two_runs_give_the_same_bits) {
  Case<BFloat16> one(140, 48, 600, 1.0), again = one;
  run_on_device(&one);
  run_on_device(&again);
  CHECK(same_results(one, again) && same_gradients(one, again));
}

TEST(addresses_between_16_bytes_change_no_bit) {
  Case<BFloat16> aligned(130, 64, 300, 1.0), shifted = aligned;
  run_on_device(&aligned, {.path = CudaPath::kSm80});  // sm90a would not take the shifted ones
  run_on_device(&shifted, {.shift = 1, .path = CudaPath::kSm80});
  CHECK(same_results(aligned, shifted) && same_gradients(aligned, shifted));
}

TEST(gradients_may_be_left_out) {
  Case<BFloat16> whole(97, 24, 401, 1.0), part = whole;
  std::fill(whole.grad_entropy.begin(), whole.grad_entropy.end(), 0.0f);
  std::fill(whole.grad_lse.begin(), whole.grad_lse.end(), 0.0f);
  part.grad_entropy.clear();
  part.grad_lse.clear();
  run_on_device(&whole);
  run_on_device(&part);
  CHECK(same_gradients(whole, part));
  Case<BFloat16> weight = whole;
  narrow(5.0f, &weight.grad_hidden[0]);
  run_on_device(&weight, {.hidden_wanted = false});
  CHECK(same_bits(whole.grad_weight, weight.grad_weight));
  CHECK(widen(weight.grad_hidden[0]) == 5.0f);
}

TEST(targets_at_edges_and_shared_by_rows) {
  for (int64_t vocabulary : {2049, 300}) {
    Case<BFloat16> c(24, 16, vocabulary, 1.0);
    const int64_t edges[] = {0, vocabulary - 1, 63, 64, 127, 128, 255, 256, 7, 8, 0, 0};
    for (size_t n = 0; n < c.targets.size(); ++n) c.targets[n] = edges[n % std::size(edges)];
    compare(c, {.scratch = vocabulary > 300 ? 0 : int64_t{64} << 20});
  }
}

TEST(what_rounding_takes_from_the_targets_gradient_is_given_back) {
  // The gradient of the target's logit is 1 + 2^-8, which bfloat16 rounds to 1; three times it is 3 + 3/4 of
  // a unit.
  for (int64_t depth : {2, 8}) {
    Case<BFloat16> c(4, depth, 3, 1.0);
    for (auto* values : {&c.hidden, &c.weight}) std::fill(values->begin(), values->end(), BFloat16{0});
    const auto d = static_cast<size_t>(depth);
    for (size_t n = 0; n < 4; ++n) narrow(1.0f, &c.hidden[n * d]);
    narrow(1000.0f, &c.weight[0]);  // column 0 has probability 1
    narrow(3.0f, &c.weight[d + 1]);
    c.targets = {1, 1, 0, 1};
    std::fill(c.grad_logp.begin(), c.grad_logp.end(), 1 + 0x1p-8f);
    c.grad_entropy.clear();
    c.grad_lse.clear();
    run_on_device(&c);
    CHECK(widen(c.grad_hidden[1]) == 3.015625f && widen(c.grad_hidden[3 * d + 1]) == 3.015625f);
    CHECK(widen(c.grad_hidden[2 * d + 1]) == 0);
    CHECK(widen(c.grad_weight[d]) == 3.015625f && widen(c.grad_weight[0]) == -3);
    CHECK(widen(c.grad_weight[2 * d]) == 0);  // nobody's target
  }
}

TEST(the_temperature_and_the_size_of_logits) {
  for (double temperature : {1e-3, 0.25, 40.0, 1e6}) compare(Case<float>(9, 40, 150, temperature));
  for (double temperature : {1e-2, 100.0}) compare(Case<BFloat16>(9, 40, 150, temperature));
}

TEST(one_hot_and_uniform_rows_have_entropy_0_and_log_v) {
  for (double temperature : {1.0, 0.3}) {
    Case<float> c(2, 4, 2100, temperature);
    std::fill(c.hidden.begin(), c.hidden.end(), 0.0f);
    std::fill(c.weight.begin(), c.weight.end(), 0.0f);
    c.hidden[0] = 100;                             // row 0 sees the first column of weight, row 1 nothing
    c.weight[static_cast<size_t>(2099 * 4)] = 50;  // 5000 before the temperature
    c.targets = {2099, 17};
    c.grad_entropy.clear();
    c.grad_lse.clear();
    run_on_device(&c);
    CHECK(c.logp[0] == 0 && c.entropy[0] == 0 && c.lse[0] == 5000 * static_cast<float>(1 / temperature));
    CHECK(c.grad_hidden[0] == 0);  // the probability is 1, not nearly 1
    CHECK_NEAR(c.logp[1], -std::log(2100.0), 1e-6);
    CHECK_NEAR(c.entropy[1], std::log(2100.0), 1e-6);
  }
}

TEST(a_row_with_nan_or_infinity_is_its_own_trouble) {
  Case<BFloat16> clean(20, 16, 200, 1.0), dirty = clean;
  narrow(std::nanf(""), &dirty.hidden[3 * 16]);
  narrow(static_cast<float>(kInfinity), &dirty.hidden[5 * 16]);
  run_on_device(&clean);
  run_on_device(&dirty);
  for (size_t n = 0; n < 20; ++n) {
    const float gradient = widen(dirty.grad_hidden[n * 16 + 1]);
    if (n == 3 || n == 5) {
      CHECK(std::isnan(dirty.logp[n]) && std::isnan(dirty.entropy[n]) && std::isnan(gradient));
    } else {
      CHECK(dirty.logp[n] == clean.logp[n] && dirty.entropy[n] == clean.entropy[n]);
      CHECK(gradient == widen(clean.grad_hidden[n * 16 + 1]));
    }
  }
}

TEST(a_logit_of_minus_infinity_has_probability_0) {
  Case<float> c(2, 1, 5, 1.0);
  c.hidden = {1, 2};
  c.weight = {0.5f, static_cast<float>(-kInfinity), 1, 0, -1};
  c.targets = {0, 2};
  const Case<double> oracle = exact_of(c);
  run_on_device(&c, {.hidden_wanted = false});  // 0 times infinity: grad_hidden has none
  CHECK_NEAR(largest_error(c.logp, oracle.logp), 0, 1e-6);
  CHECK_NEAR(largest_error(c.entropy, oracle.entropy), 0, 1e-6);
  CHECK(c.grad_weight[1] == 0);
  CHECK_NEAR(largest_error(c.grad_weight, oracle.grad_weight), 0, 1e-6);
}

TEST(a_target_outside_is_recorded_and_gives_nan) {
  Case<BFloat16> c(40, 8, 30, 1.0), right = c;
  c.targets[7] = 30;
  c.targets[33] = -1;
  run_on_device(&right);
  const FaultWord word = run_on_device(&c);
  CHECK(fault(c.problem, word).message() ==
        "[logprob] targets: expected token ids in [0, 30), got another in row 7");
  CHECK(fault(c.problem, kNoFault).ok());
  CHECK(std::isnan(c.logp[7]) && std::isnan(c.logp[33]) && std::isnan(widen(c.grad_hidden[7 * 8])));
  CHECK(c.logp[8] == right.logp[8] && c.entropy[7] == right.entropy[7]);
  CHECK(widen(c.grad_hidden[8 * 8]) == widen(right.grad_hidden[8 * 8]));
}

TEST(no_rows_give_a_zero_weight_gradient) {
  Case<BFloat16> c(0, 3, 5, 1.0);
  narrow(5.0f, &c.grad_weight[0]);
  run_on_device(&c);
  for (BFloat16 value : c.grad_weight) CHECK(widen(value) == 0.0f);
}

TEST(which_names_the_path_and_a_path_that_cannot_run_is_an_error) {
  Case<BFloat16> c(3, 5, 7, 1.0);
  Forward f;
  f.problem = c.problem;
  f.problem.device = Device::kCuda;
  std::string name;
  CHECK(which(Device::kCuda, &name).ok() && (name == "cuda/sm80" || name == "cuda/sm90a"));
  CHECK(which(f.problem, &name).ok() && name == "cuda/sm80");  // rows of 5 do not begin on 16 bytes
  f.problem.path = CudaPath::kSm90a;
  CHECK(which(f.problem, &name).code() == StatusCode::kUnsupported);
  const std::string refused = run(f, &name).message();
  CHECK(refused == "[logprob] path: expected sm80 for a depth that is no multiple of 8, got sm90a" ||
        refused.find("[logprob] path: expected sm90a on compute capability 9.0, got ") == 0);
}

TEST(path_sm90a_passes_all_of_this_where_it_can_run) {
  cuda::Properties device;
  CHECK(cuda::properties("test", &device).ok());
  if (!device.runs_sm90a) return;
  path_of_all = CudaPath::kSm90a;
  for (const check::Test& test : check::tests()) {
    const std::string name = test.name;
    // Those of path sm80 or of float32, which sm90a does not take.
    const bool others = name.rfind("float", 0) == 0 || name.rfind("every_path", 0) == 0 ||
                        name.rfind("addresses", 0) == 0 || name.rfind("one_hot", 0) == 0 ||
                        name.rfind("a_logit", 0) == 0 || name.rfind("the_temperature", 0) == 0;
    if (others || name.rfind("path_sm90a", 0) == 0) continue;
    const int before = check::failures();
    test.body();
    if (check::failures() != before) std::printf("  of %s by path sm90a\n", test.name);
  }
  path_of_all = CudaPath::kBest;
}

TEST(the_large_problem_takes_less_than_200_megabytes) {
  static float gradient;
  Backward b;
  b.problem.type = Type::kBFloat16;
  b.problem.rows = 16384;
  b.problem.depth = 3584;
  b.problem.vocabulary = 158720;
  b.problem.device = Device::kCuda;
  b.grad_hidden = b.grad_weight = &gradient;
  Forward f;
  f.problem = b.problem;
  CHECK(workspace_size(b) < 200'000'000 && workspace_size(f) < 200'000'000);
  CHECK(kept_size(b.problem) == 0);
}

#endif
