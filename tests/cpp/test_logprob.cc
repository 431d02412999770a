// SPDX-License-Identifier: Apache-2.0
// Every tier against the plain loops, on sizes that leave remainders everywhere; workspace and errors.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "kernels/logprob/logprob.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using namespace earnest::logprob;

template <typename Stored>
constexpr Type kType = sizeof(Stored) == 8   ? Type::kFloat64
                       : sizeof(Stored) == 4 ? Type::kFloat32
                                             : Type::kBFloat16;

// One problem with all its inputs and outputs.
template <typename Stored, typename Row>
struct Case {
  std::vector<Stored> hidden, weight, grad_hidden, grad_weight;
  std::vector<int64_t> targets;
  std::vector<Row> logp, entropy, lse, grad_logp, grad_entropy, grad_lse;
  Forward forward;
  Backward backward;

  Case(int64_t rows, int64_t depth, int64_t vocabulary, double temperature) {
    std::mt19937 random(static_cast<unsigned>(rows * 7919 + depth * 31 + vocabulary));
    std::normal_distribution<float> normal;
    const auto fill = [&](auto* values, int64_t count, Row scale = 1) {
      values->resize(static_cast<size_t>(count));
      for (auto& value : *values) narrow(static_cast<Row>(normal(random)) * scale, &value);
    };
    fill(&hidden, rows * depth);
    fill(&weight, vocabulary * depth, 2 / std::sqrt(static_cast<Row>(depth)));  // logits of a few units
    for (auto* values : {&logp, &entropy, &lse, &grad_logp, &grad_entropy, &grad_lse}) fill(values, rows);
    grad_hidden.resize(hidden.size());
    grad_weight.resize(weight.size());
    for (int64_t n = 0; n < rows; ++n)
      targets.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(vocabulary)));
    forward.problem = {kType<Stored>, rows,          depth,         vocabulary,
                       temperature,   hidden.data(), weight.data(), targets.data()};
    forward.logp = logp.data();
    forward.entropy = entropy.data();
    forward.lse = lse.data();
    backward.problem = forward.problem;
    backward.entropy = entropy.data();
    backward.lse = lse.data();
    backward.grad_logp = grad_logp.data();
    backward.grad_entropy = grad_entropy.data();
    backward.grad_lse = grad_lse.data();
    backward.grad_hidden = grad_hidden.data();
    backward.grad_weight = grad_weight.data();
  }
};

// Scratch memory of exactly the stated size (so that a sanitizer sees a step outside) and the worst content,
// NaN.
template <typename Job>
Status run_in_dirt(const Job& job) {
  std::vector<unsigned char> workspace(workspace_size(job), 0xff);
  return run(job, workspace.data());
}

template <typename T>
double largest_error(const std::vector<T>& a, const std::vector<T>& b) {
  double error = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error = std::max(error, std::abs(static_cast<double>(widen(a[i])) - static_cast<double>(widen(b[i]))));
    scale = std::max(scale, std::abs(static_cast<double>(widen(b[i]))));
  }
  return error / std::max(scale, 1.0);
}

template <typename Stored, typename Row>
void compare_with_reference(double row_bound, double gradient_bound) {
  const int64_t shapes[][3] = {{1, 1, 1},       {3, 5, 2},     {13, 401, 193},
                               {101, 29, 1153}, {1537, 3, 47}, {2, 769, 7}};
  for (const auto& shape : shapes) {
    Case<Stored, Row> oracle(shape[0], shape[1], shape[2], 0.7);
    CHECK(run_reference(oracle.forward).ok());
    CHECK(run_reference(oracle.backward).ok());
    for (const std::string& tier : usable_tiers()) {
      CHECK(force_cpu_tier(tier).ok());
      Case<Stored, Row> c(shape[0], shape[1], shape[2], 0.7);
      CHECK(run_in_dirt(c.forward).ok());
      CHECK_NEAR(largest_error(c.logp, oracle.logp), 0, row_bound);
      CHECK_NEAR(largest_error(c.entropy, oracle.entropy), 0, row_bound);
      CHECK_NEAR(largest_error(c.lse, oracle.lse), 0, row_bound);
      CHECK(run_in_dirt(c.backward).ok());
      CHECK_NEAR(largest_error(c.grad_hidden, oracle.grad_hidden), 0, gradient_bound);
      CHECK_NEAR(largest_error(c.grad_weight, oracle.grad_weight), 0, gradient_bound);
    }
  }
  CHECK(force_cpu_tier("").ok());
}

using FloatCase = Case<float, float>;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST(float64_equals_plain_loops) { compare_with_reference<double, double>(1e-13, 1e-12); }
TEST(float32_equals_plain_loops) { compare_with_reference<float, float>(2e-6, 2e-5); }
TEST(bfloat16_is_float_arithmetic_on_rounded_input) {
  compare_with_reference<BFloat16, float>(2e-6, 1.0 / 128);  // gradients are rounded to 8 bits
}

TEST(threads_change_no_bit) {
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    FloatCase one(1601, 19, 1361, 1.3), many(1601, 19, 1361, 1.3);
    set_num_threads(1);
    CHECK(run_in_dirt(one.forward).ok() && run_in_dirt(one.backward).ok());
    set_num_threads(5);
    CHECK(run_in_dirt(many.forward).ok() && run_in_dirt(many.backward).ok());
    CHECK(same_bits(one.logp, many.logp) && same_bits(one.entropy, many.entropy) &&
          same_bits(one.lse, many.lse));
    CHECK(same_bits(one.grad_hidden, many.grad_hidden) && same_bits(one.grad_weight, many.grad_weight));
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(a_row_alone_equals_the_row_in_a_batch) {
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    FloatCase batch(1543, 43, 211, 1.0);
    CHECK(run_in_dirt(batch.forward).ok() && run_in_dirt(batch.backward).ok());
    for (int64_t row : {0, 7, 97, 1535, 1536, 1542}) {
      FloatCase alone(1, 43, 211, 1.0);
      alone.weight = batch.weight;
      alone.targets[0] = batch.targets[static_cast<size_t>(row)];
      std::copy_n(batch.hidden.begin() + row * 43, 43, alone.hidden.begin());
      alone.grad_logp[0] = batch.grad_logp[static_cast<size_t>(row)];
      alone.grad_entropy[0] = batch.grad_entropy[static_cast<size_t>(row)];
      alone.grad_lse[0] = batch.grad_lse[static_cast<size_t>(row)];
      alone.forward.problem.weight = alone.backward.problem.weight = alone.weight.data();
      CHECK(run_in_dirt(alone.forward).ok() && run_in_dirt(alone.backward).ok());
      CHECK(alone.logp[0] == batch.logp[static_cast<size_t>(row)]);
      CHECK(alone.entropy[0] == batch.entropy[static_cast<size_t>(row)]);
      CHECK(std::equal(alone.grad_hidden.begin(), alone.grad_hidden.end(),
                       batch.grad_hidden.begin() + row * 43));
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(gradients_may_be_left_out) {
  FloatCase whole(97, 31, 401, 1.0), part(97, 31, 401, 1.0);
  std::fill(whole.grad_entropy.begin(), whole.grad_entropy.end(), 0.0f);
  std::fill(whole.grad_lse.begin(), whole.grad_lse.end(), 0.0f);
  part.backward.grad_entropy = part.backward.grad_lse = nullptr;
  CHECK(run_in_dirt(whole.forward).ok() && run_in_dirt(whole.backward).ok());
  CHECK(run_in_dirt(part.forward).ok() && run_in_dirt(part.backward).ok());
  CHECK(same_bits(whole.grad_hidden, part.grad_hidden) && same_bits(whole.grad_weight, part.grad_weight));
  std::fill(part.grad_weight.begin(), part.grad_weight.end(), 5.0f);
  part.backward.grad_weight = nullptr;
  CHECK(workspace_size(part.backward) < workspace_size(whole.backward));
  CHECK(run_in_dirt(part.backward).ok());
  CHECK(same_bits(whole.grad_hidden, part.grad_hidden));
  CHECK(part.grad_weight[0] == 5.0f);
}

TEST(kept_logits_change_no_bit) {
  const int64_t shapes[][3] = {{5, 3, 131}, {97, 31, 1401}, {1543, 5, 3001}};
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    for (const auto& shape : shapes) {
      FloatCase again(shape[0], shape[1], shape[2], 1.0), kept(shape[0], shape[1], shape[2], 1.0);
      std::vector<float> logits(static_cast<size_t>(kept_size(kept.forward.problem)), std::nanf(""));
      kept.forward.logits = logits.data();
      kept.backward.logits = logits.data();
      CHECK(run_in_dirt(again.forward).ok() && run_in_dirt(again.backward).ok());
      CHECK(run_in_dirt(kept.forward).ok() && run_in_dirt(kept.backward).ok());
      CHECK(same_bits(again.logp, kept.logp) && same_bits(again.entropy, kept.entropy));
      CHECK(same_bits(again.grad_hidden, kept.grad_hidden));
      CHECK(same_bits(again.grad_weight, kept.grad_weight));
      // They are read: without them the gradient is another.
      std::fill(logits.begin(), logits.end(), -1e30f);
      CHECK(run_in_dirt(kept.backward).ok());
      CHECK(!same_bits(again.grad_hidden, kept.grad_hidden));
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(no_rows_give_a_zero_weight_gradient) {
  FloatCase c(0, 3, 5, 1.0);
  std::fill(c.grad_weight.begin(), c.grad_weight.end(), 5.0f);
  CHECK(run_in_dirt(c.forward).ok() && run_in_dirt(c.backward).ok());
  for (float value : c.grad_weight) CHECK(value == 0.0f);
}

TEST(scratch_memory_does_not_grow_with_rows_times_vocabulary) {
  const auto bytes = [](int64_t rows, int64_t vocabulary) {
    Backward b;
    b.problem = {Type::kFloat32, rows, 576, vocabulary, 1.0, nullptr, nullptr, nullptr};
    static float gradient;
    b.grad_hidden = b.grad_weight = &gradient;
    return workspace_size(b);
  };
  CHECK(bytes(1 << 20, 1 << 20) == bytes(1 << 12, 1 << 12));
  CHECK(bytes(1 << 20, 1 << 20) < (20u << 20));
}

TEST(scratch_memory_and_kept_logits_stay_under_64_mebibytes) {
  static float gradient;
  for (Type type : {Type::kFloat32, Type::kBFloat16}) {
    for (const auto& [rows, depth, vocabulary] :
         {std::array<int64_t, 3>{2048, 576, 32000}, {1024, 2048, 151936}, {1024, 2048, int64_t{1} << 30}}) {
      Backward b;
      b.problem = {type, rows, depth, vocabulary, 1.0, nullptr, nullptr, nullptr};
      b.grad_hidden = b.grad_weight = &gradient;
      const size_t kept = static_cast<size_t>(kept_size(b.problem)) * sizeof(float);
      CHECK(workspace_size(b) + kept < (64u << 20));
    }
  }
}

TEST(bad_input_is_an_error_with_a_sentence) {
  const auto message = [](auto change) {
    FloatCase c(3, 5, 7, 1.0);
    change(&c.forward.problem, &c.targets);
    return run_in_dirt(c.forward).message();
  };
  const double infinity = std::numeric_limits<double>::infinity();
  using Targets = std::vector<int64_t>;
  CHECK(message([](Problem*, Targets* t) { (*t)[2] = 7; }) ==
        "[logprob] targets: expected token ids in [0, 7), got 7 in row 2");
  CHECK(message([](Problem*, Targets* t) { (*t)[0] = -100; }).find("got -100 in row 0") != std::string::npos);
  for (double bad : {0.0, -1.0, infinity, std::nan(""), 1e-300, 1e300}) {
    CHECK(message([bad](Problem* p, Targets*) { p->temperature = bad; }).find("temperature") !=
          std::string::npos);
  }
  CHECK(message([](Problem* p, Targets*) { p->hidden = nullptr; }).find("null") != std::string::npos);
  FloatCase c(3, 5, 7, 1.0);
  c.forward.problem.depth = 0;
  CHECK(!run(c.forward, nullptr).ok());
  c.forward.problem.depth = 5;
  CHECK(!run(c.forward, nullptr).ok());
  c.forward.problem.rows = int64_t{1} << 61;
  CHECK(!run(c.forward, nullptr).ok());
}

TEST(which_names_the_back_end) {
  std::string name;
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    CHECK(which(Device::kCpu, &name).ok() && name == "cpu/" + tier);
  }
  CHECK(force_cpu_tier("").ok());
#if !defined(EARNEST_WITH_CUDA)
  CHECK(which(Device::kCuda, &name).code() == StatusCode::kUnsupported);
  FloatCase c(3, 5, 7, 1.0);
  c.forward.problem.device = Device::kCuda;
  CHECK(run_in_dirt(c.forward).code() == StatusCode::kUnsupported);
#endif
}
