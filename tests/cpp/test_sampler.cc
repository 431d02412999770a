// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <random>

#include "csrc/engine/sampler.h"
#include "tests/cpp/check.h"

using namespace earnest::engine;

namespace {

Sampler::Scratch scratch;
constexpr float kNever = -std::numeric_limits<float>::infinity();

int32_t drawn(const Sampling& sampling, const std::vector<float>& logits, double at) {
  Sampler sampler(sampling, static_cast<int64_t>(logits.size()));
  int32_t token = -1;
  CHECK(sampler.draw(logits, at, &scratch, &token).ok());
  return token;
}

std::vector<float> random_logits(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// The distribution that draws at a grid of uniform numbers find: shares are exact to 1 / steps.
std::vector<double> shares(const Sampling& sampling, const std::vector<float>& logits, int steps) {
  std::vector<double> found(logits.size());
  Sampler sampler(sampling, static_cast<int64_t>(logits.size()));
  for (int i = 0; i < steps; ++i) {
    int32_t token = -1;
    CHECK(sampler.draw(logits, (i + 0.5) / steps, &scratch, &token).ok());
    found[static_cast<size_t>(token)] += 1.0 / steps;
  }
  return found;
}

}  // namespace

TEST(draws_follow_the_softmax) {
  const std::vector<float> logits = random_logits(37, 1);
  for (double temperature : {0.5, 1.0, 2.0}) {
    const std::vector<double> found = shares({.temperature = temperature}, logits, 20000);
    double sum = 0;
    for (float logit : logits) sum += std::exp(logit / temperature);
    for (size_t i = 0; i < logits.size(); ++i) {
      CHECK_NEAR(found[i], std::exp(logits[i] / temperature) / sum, 1.01 / 20000);
    }
  }
}

TEST(no_temperature_takes_the_likeliest_and_the_first_of_equals) {
  CHECK(drawn({.temperature = 0}, {1, 3, 3, 2}, 0.99) == 1);
  CHECK(drawn({.temperature = 0, .suppressed = {1, 2}}, {1, 3, 3, 2}, 0.99) == 3);
}

TEST(cuts_leave_what_they_promise) {
  const std::vector<float> logits = {0, 2, 1, 2, -1};  // likeliest first: 1, 3, 2, 0, 4
  const auto left = [&](const Sampling& sampling) {
    std::vector<int> ids;
    const std::vector<double> found = shares(sampling, logits, 2000);
    for (size_t i = 0; i < found.size(); ++i) {
      if (found[i] > 0) ids.push_back(static_cast<int>(i));
    }
    return ids;
  };
  CHECK((left({}) == std::vector<int>{0, 1, 2, 3, 4}));
  CHECK((left({.top_k = 1}) == std::vector<int>{1}));  // of equals the first
  CHECK((left({.top_k = 3}) == std::vector<int>{1, 2, 3}));
  // weights relative to the likeliest: 1, 1, .368, .135, .0498; their sum 2.553
  CHECK((left({.top_p = 0.39}) == std::vector<int>{1}));
  CHECK((left({.top_p = 0.40}) == std::vector<int>{1, 3}));
  CHECK((left({.top_p = 0.94}) == std::vector<int>{0, 1, 2, 3}));
  CHECK((left({.top_p = 0.92}) == std::vector<int>{1, 2, 3}));
  CHECK((left({.min_p = 0.3}) == std::vector<int>{1, 2, 3}));
  CHECK((left({.top_k = 3, .top_p = 0.85}) == std::vector<int>{1, 2, 3}));  // of the three, not of all
  CHECK((left({.top_k = 3, .top_p = 0.84}) == std::vector<int>{1, 3}));
  CHECK((left({.suppressed = {1}}) == std::vector<int>{0, 2, 3, 4}));
}

TEST(penalties_count_what_was_heard_and_said) {
  const std::vector<float> logits = {2, -1, 1.5, 0};
  const auto greedy = [&](Sampling sampling, std::vector<int32_t> prompt, std::vector<int32_t> reply) {
    sampling.temperature = 0;
    Sampler sampler(sampling, 4);
    sampler.heard(prompt);
    for (int32_t id : reply) sampler.said(id);
    int32_t token = -1;
    CHECK(sampler.draw(logits, 0, &scratch, &token).ok());
    return token;
  };
  CHECK(greedy({.repetition_penalty = 1.3}, {0}, {}) == 0);  // 2 / 1.3 = 1.54
  CHECK(greedy({.repetition_penalty = 1.4}, {0}, {}) == 2);
  CHECK(greedy({.repetition_penalty = 1.4}, {}, {0, 2}) == 0);
  CHECK(greedy({.presence_penalty = 0.6}, {0, 0}, {}) == 0);  // the prompt does not count
  CHECK(greedy({.presence_penalty = 0.6}, {}, {0, 0, 0}) == 2);
  CHECK(greedy({.frequency_penalty = 0.2}, {}, {0, 0}) == 0);
  CHECK(greedy({.frequency_penalty = 0.2}, {}, {0, 0, 0}) == 2);
  const std::vector<float> negative = {-1, -1.2F};
  Sampler sampler({.temperature = 0, .repetition_penalty = 1.3}, 2);
  sampler.said(0);
  int32_t token = -1;
  CHECK(sampler.draw(negative, 0, &scratch, &token).ok() && token == 1);  // -1 * 1.3
}

TEST(the_ends_of_the_draw_are_tokens_that_may_be_drawn) {
  CHECK(drawn({}, {kNever, 0, 0, kNever}, 0) == 1);
  CHECK(drawn({}, {kNever, 0, 0, kNever}, std::nextafter(1.0, 0.0)) == 2);
  CHECK(drawn({}, {80, -80, 0}, 0.5) == 0);
}

TEST(bad_logits_and_settings_are_refused) {
  int32_t token = 7;
  Sampler sampler({}, 2);
  for (const std::vector<float>& logits : {std::vector<float>{NAN, 0}, {INFINITY, 0}, {kNever, kNever}}) {
    CHECK(!sampler.draw(logits, 0.5, &scratch, &token).ok() && token == 7);
  }
  CHECK(check_sampling({}, 2).ok());
  for (const Sampling& wrong : {Sampling{.temperature = -1},
                                {.temperature = NAN},
                                {.temperature = INFINITY},
                                {.top_k = -1},
                                {.top_p = 0},
                                {.top_p = 1.1},
                                {.top_p = NAN},
                                {.min_p = -0.1},
                                {.repetition_penalty = 0},
                                {.presence_penalty = NAN},
                                {.frequency_penalty = INFINITY},
                                {.suppressed = {2}},
                                {.suppressed = {-1}}}) {
    CHECK(check_sampling(wrong, 2).code() == earnest::StatusCode::kInvalidArgument);
  }
}

TEST(uniform_numbers_are_fair_and_depend_on_seed_and_index) {
  double sum = 0, squares = 0, products = 0, before = 0.5;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const double u = uniform(3, static_cast<uint64_t>(i));
    CHECK(u >= 0 && u < 1 && u == uniform(3, static_cast<uint64_t>(i)));
    sum += u;
    squares += u * u;
    products += u * before;
    before = u;
  }
  CHECK_NEAR(sum / kCount, 0.5, 0.004);
  CHECK_NEAR(squares / kCount, 1.0 / 3, 0.004);
  CHECK_NEAR(products / kCount, 0.25, 0.004);
  CHECK(uniform(3, 5) != uniform(4, 5));
}
