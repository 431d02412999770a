// SPDX-License-Identifier: Apache-2.0
// Scores are the logits of kernels/linear and the log-probabilities of kernels/logprob, bit for bit, whatever
// rows come together and on how many threads.
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/common/thread_pool.h"
#include "kernels/linear/linear.h"
#include "kernels/logprob/scores.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;
using namespace earnest::logprob;

template <typename Stored>
std::vector<Stored> random_numbers(int64_t count, float scale, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<Stored> numbers(static_cast<size_t>(count));
  for (Stored& number : numbers) narrow(normal(random), &number);
  return numbers;
}

template <typename Stored>
struct Head {
  static constexpr Type kType = std::is_same_v<Stored, float> ? Type::kFloat32 : Type::kBFloat16;
  int64_t depth, vocabulary;
  std::vector<Stored> weight;
  std::vector<float> packed;

  Head(int64_t depth, int64_t vocabulary)
      : depth(depth),
        vocabulary(vocabulary),
        weight(random_numbers<Stored>(depth * vocabulary, 2 / std::sqrt(static_cast<float>(depth)), 1)) {
    const ScoreMatrix matrix = {kType, vocabulary, depth, weight.data()};
    size_t bytes = 0;
    CHECK(packed_size(matrix, &bytes).ok());
    packed.resize(bytes / sizeof(float));  // exactly: a sanitizer sees a step outside
    CHECK(pack(matrix, packed.data()).ok());
  }
};

struct Scored {
  std::vector<float> logits;
  std::vector<RowNorm> norms;
};

template <typename Stored>
Scored score(const Head<Stored>& head, const Stored* hidden, int64_t rows) {
  Scored scored{std::vector<float>(static_cast<size_t>(rows * head.vocabulary)),
                std::vector<RowNorm>(static_cast<size_t>(rows))};
  const Scores job = {
      head.kType,         rows, head.vocabulary, head.depth, hidden, head.packed.data(), scored.logits.data(),
      scored.norms.data()};
  std::vector<unsigned char> workspace(workspace_size(job), 0xff);
  CHECK(run(job, workspace.data()).ok());
  return scored;
}

bool same(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

template <typename Stored>
std::vector<float> logp_of_targets(const Head<Stored>& head, const std::vector<Stored>& hidden,
                                   const std::vector<int64_t>& targets) {
  std::vector<float> logp(targets.size()), entropy(targets.size()), lse(targets.size());
  Forward forward;
  forward.problem = {head.kType,
                     static_cast<int64_t>(targets.size()),
                     head.depth,
                     head.vocabulary,
                     1,
                     hidden.data(),
                     head.weight.data(),
                     targets.data()};
  forward.logp = logp.data();
  forward.entropy = entropy.data();
  forward.lse = lse.data();
  std::vector<unsigned char> workspace(workspace_size(forward));
  CHECK(run(forward, workspace.data()).ok());
  return logp;
}

template <typename Stored>
std::vector<Stored> product(const Head<Stored>& head, const std::vector<Stored>& hidden, int64_t rows) {
  constexpr bool kWhole = std::is_same_v<Stored, float>;
  linear::Pack pack;
  pack.type = kWhole ? linear::Type::kFloat32 : linear::Type::kBFloat16;
  pack.columns = head.vocabulary;
  pack.depth = head.depth;
  pack.source = head.weight.data();
  size_t bytes = 0;
  CHECK(linear::packed_size(pack, &bytes).ok());
  std::vector<double> packed(bytes / sizeof(double) + 1);
  CHECK(linear::run(pack, packed.data()).ok());
  std::vector<Stored> output(static_cast<size_t>(rows * head.vocabulary));
  linear::Product job;
  job.type = pack.type;
  job.rows = rows;
  job.columns = head.vocabulary;
  job.depth = head.depth;
  job.left = hidden.data();
  job.packed = packed.data();
  job.output = output.data();
  std::vector<char> workspace(linear::workspace_size(job));
  CHECK(linear::run(job, workspace.data()).ok());
  return output;
}

template <typename Stored>
void check_shape(int64_t rows, int64_t depth, int64_t vocabulary, bool multiplies_bfloat16) {
  const Head<Stored> head(depth, vocabulary);
  const auto hidden = random_numbers<Stored>(rows * depth, 1, 2);
  const Scored scored = score(head, hidden.data(), rows);
  std::vector<int64_t> targets;
  for (int64_t n = 0; n < rows; ++n) targets.push_back((n * 7919 + 3) % vocabulary);
  const std::vector<float> logp = logp_of_targets(head, hidden, targets);
  for (int64_t n = 0; n < rows; ++n) {
    const auto row = static_cast<size_t>(n);
    const float* logits = scored.logits.data() + n * vocabulary;
    const float mine = logp_of(logits[targets[row]], scored.norms[row]);
    CHECK(same(&mine, &logp[row], 1));
    const Scored alone = score(head, hidden.data() + n * depth, 1);
    CHECK(same(alone.logits.data(), logits, vocabulary));
    CHECK(std::memcmp(alone.norms.data(), &scored.norms[row], sizeof(RowNorm)) == 0);
  }
  if constexpr (std::is_same_v<Stored, float>) {
    CHECK(same(product(head, hidden, rows).data(), scored.logits.data(), rows * vocabulary));
  } else if (multiplies_bfloat16) {
    const std::vector<BFloat16> rounded = product(head, hidden, rows);
    for (size_t i = 0; i < rounded.size(); ++i) {
      BFloat16 mine;
      narrow(scored.logits[i], &mine);
      CHECK(std::memcmp(&mine, &rounded[i], sizeof mine) == 0);
    }
  }
}

}  // namespace

TEST(they_are_the_bits_of_linear_and_logprob_on_every_tier) {
  for (const std::string& tier : usable_tiers()) {
    CHECK(force_cpu_tier(tier).ok());
    for (const int threads : {1, 2}) {
      set_num_threads(threads);
      // Depths of one block, of several equal ones, and of several of which the last is shorter.
      for (const int64_t depth : {1, 7, 256, 577, 1025}) {
        for (const int64_t vocabulary : {1, 47, 193, 400}) {
          for (const int64_t rows : {1, 9, 97}) {
            check_shape<float>(rows, depth, vocabulary, false);
            check_shape<BFloat16>(rows, depth, vocabulary, tier == "avx512_bf16");
          }
        }
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(a_row_that_is_no_number_stays_its_own) {
  const Head<float> head(64, 300);
  auto hidden = random_numbers<float>(5 * 64, 1, 2);
  const Scored before = score(head, hidden.data(), 5);
  hidden[2 * 64 + 7] = std::numeric_limits<float>::quiet_NaN();
  const Scored after = score(head, hidden.data(), 5);
  for (size_t row = 0; row < 5; ++row) {
    CHECK(same(before.logits.data() + row * 300, after.logits.data() + row * 300, 300) == (row != 2));
    CHECK(std::isnan(after.norms[row].log_sum) == (row == 2));
  }
}

TEST(what_makes_no_sense_is_refused_in_words) {
  const float number = 1;
  size_t bytes = 0;
  CHECK(packed_size({Type::kFloat64, 3, 3, &number}, &bytes).message() ==
        "[scores] type: expected float32 or bfloat16, got float64");
  CHECK(packed_size({Type::kFloat32, 0, 3, &number}, &bytes).message() ==
        "[scores] weight: expected V >= 1 rows, got 0");
  CHECK(!packed_size({Type::kFloat32, 3, 0, &number}, &bytes).ok());
  CHECK(!packed_size({Type::kFloat32, int64_t{1} << 60, 1 << 10, &number}, &bytes).ok());
  float packed[64];
  CHECK(!pack({Type::kFloat32, 1, 1, nullptr}, packed).ok());
  Scores job;
  job.vocabulary = job.depth = 1;
  CHECK(run(job, nullptr).ok());  // no rows, nothing to do
  job.rows = -1;
  CHECK(!run(job, nullptr).ok());
  job.rows = 1;
  CHECK(run(job, nullptr).message() == "[scores] hidden: expected arrays, got null");
}
