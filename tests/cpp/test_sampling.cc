// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/sampling/sampling.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

namespace {

using namespace earnest;

struct Weights {
  std::vector<double> values, sums;
};

Weights weights_of(const std::vector<double>& logits, double temperature) {
  Weights made{logits, std::vector<double>(
                           static_cast<size_t>(sampling::blocks_of(static_cast<int64_t>(logits.size()))))};
  sampling::Weigh job{static_cast<int64_t>(logits.size()), temperature, made.values.data(), made.sums.data()};
  CHECK(sampling::run(job).ok());
  return made;
}

std::vector<double> random_logits(size_t count, double spread, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, spread);
  std::vector<double> logits(count);
  for (double& logit : logits) logit = normal(random);
  return logits;
}

int64_t drawn(Weights* weights, double uniform) {
  const sampling::Weigh job{static_cast<int64_t>(weights->values.size()), 1, weights->values.data(),
                            weights->sums.data()};
  return sampling::draw(job, uniform);
}

}  // namespace

TEST(weights_are_exponentials_to_the_last_place_on_every_tier) {
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (const size_t count : {1, 2, 7, 8, 9, 255, 256, 257, 1000, 4099}) {
      for (const double temperature : {0.3, 1.0, 1.7}) {
        const std::vector<double> logits = random_logits(count, 40, static_cast<unsigned>(count));
        const Weights weights = weights_of(logits, temperature);
        double most = logits[0];
        for (const double logit : logits) most = std::max(most, logit);
        for (size_t i = 0; i < count; ++i) {
          const long double x = (logits[i] - most) / temperature;
          const double exact = x < -700 ? 0 : static_cast<double>(std::exp(x));
          CHECK(std::abs(weights.values[i] - exact) <= exact * 0x1p-52);
        }
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(tiers_agree_bit_for_bit) {
  const std::vector<double> logits = random_logits(3001, 9, 3);
  CHECK(force_cpu_tier("scalar").ok());
  const Weights expected = weights_of(logits, 0.7);
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    const Weights found = weights_of(logits, 0.7);
    CHECK(std::memcmp(found.values.data(), expected.values.data(), 3001 * sizeof(double)) == 0);
    CHECK(found.sums == expected.sums);
  }
  CHECK(force_cpu_tier("").ok());
}

TEST(what_cannot_be_is_never_drawn) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  for (const size_t count : {3, 300, 1000}) {
    std::vector<double> logits(count, kNever);
    logits[1] = 2;
    logits[count - 2] = 2;
    Weights weights = weights_of(logits, 1);
    CHECK(drawn(&weights, 0) == 1);
    CHECK(drawn(&weights, std::nextafter(1.0, 0.0)) == static_cast<int64_t>(count) - 2);
    weights = weights_of(std::vector<double>{0, -701, -699}, 1);
    CHECK(weights.values[1] == 0 && weights.values[2] > 0);
  }
}

TEST(draws_invert_the_cumulative_sum) {
  const std::vector<double> logits = random_logits(1111, 2, 5);
  Weights weights = weights_of(logits, 1);
  long double sum = 0;
  for (const double weight : weights.values) sum += weight;
  for (int step = 0; step < 5000; ++step) {
    const double uniform = (step + 0.5) / 5000;
    const auto found = static_cast<size_t>(drawn(&weights, uniform));
    long double before = 0;
    for (size_t i = 0; i < found; ++i) before += weights.values[i];
    CHECK(before / sum <= uniform + 1e-12L && (before + weights.values[found]) / sum >= uniform - 1e-12L);
  }
}

TEST(the_likeliest_is_the_first_of_the_largest) {
  int64_t index = -1;
  const std::vector<double> logits = {-3, 1, 1, 0};
  CHECK(sampling::likeliest(logits.data(), 4, &index).ok() && index == 1);
}

TEST(bad_logits_are_refused_and_stay_as_they_were) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const std::string& tier : usable_tiers(CpuTier::kAvx512)) {
    CHECK(force_cpu_tier(tier).ok());
    for (size_t at : {0, 5, 12, 20}) {
      for (const double bad : {std::nan(""), kInfinity}) {
        std::vector<double> logits(21, 0.5);
        logits[at] = bad;
        const std::vector<double> before = logits;
        double sums[1] = {7};
        int64_t index = 9;
        CHECK(!sampling::run({21, 1, logits.data(), sums}).ok() && sums[0] == 7);
        CHECK(std::memcmp(logits.data(), before.data(), 21 * sizeof(double)) == 0);
        CHECK(!sampling::likeliest(logits.data(), 21, &index).ok() && index == 9);
      }
    }
  }
  CHECK(force_cpu_tier("").ok());
  std::vector<double> logits(3, -kInfinity), sums(1);
  CHECK(sampling::run({3, 1, logits.data(), sums.data()}).code() == StatusCode::kInvalidArgument);
  logits.assign(3, 0);
  for (const double temperature : {0.0, -1.0, kInfinity, std::nan("")}) {
    CHECK(!sampling::run({3, temperature, logits.data(), sums.data()}).ok());
  }
  CHECK(!sampling::run({0, 1, logits.data(), sums.data()}).ok());
}
