// SPDX-License-Identifier: Apache-2.0
// Draws on a GPU, or in the emulator, against those of the CPU: the same tokens, also where the uniform
// number stands at the very edge between two of them, so that one wrong bit of one weight shows.
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/sampling/draws.h"
#include "kernels/sampling/sampling.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace earnest;
using namespace earnest::sampling;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

BFloat16 number_of(double x) {
  BFloat16 result;
  narrow(static_cast<float>(x), &result);
  return result;
}

// Rows of logits, and what each is drawn by.
struct Rows {
  int64_t count;
  std::vector<BFloat16> logits = {};
  std::vector<double> temperatures = {}, uniforms = {};
  std::vector<Suppressed> suppressed = {};

  void add(const std::vector<BFloat16>& row, double temperature, double uniform) {
    logits.insert(logits.end(), row.begin(), row.end());
    temperatures.push_back(temperature), uniforms.push_back(uniform);
  }
  size_t rows() const { return temperatures.size(); }
};

std::vector<BFloat16> random_row(int64_t count, unsigned seed, double spread = 3) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, spread);
  std::vector<BFloat16> row;
  for (int64_t i = 0; i < count; ++i) row.push_back(number_of(normal(random)));
  return row;
}

std::vector<int32_t> drawn_on_device(const Rows& all) {
  std::vector<int32_t> tokens(all.rows(), 0x5a5a5a5a);
  Lent lent(Device::kCuda);
  std::vector<BFloat16> logits = all.logits;
  Draws job;
  job.rows = static_cast<int64_t>(all.rows()), job.count = all.count;
  job.logits = lent.out(logits.data(), logits.size());
  job.temperatures = lent.in(all.temperatures.data(), all.rows());
  job.uniforms = lent.in(all.uniforms.data(), all.rows());
  job.ranges = static_cast<int64_t>(all.suppressed.size());
  if (job.ranges > 0) job.suppressed = lent.in(all.suppressed.data(), all.suppressed.size());
  job.tokens = lent.out(tokens.data(), tokens.size());
  const Status status = run(job, lent.scratch(workspace_size(job)));
  CHECK(status.ok());
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
  lent.finish();
  return tokens;
}

struct OnCpu {
  std::vector<double> values, sums;
  Weigh job;
  explicit OnCpu(const BFloat16* row, int64_t count, double temperature)
      : sums(static_cast<size_t>(blocks_of(count))) {
    for (int64_t i = 0; i < count; ++i) values.push_back(widen(row[i]));
    job = {count, temperature, values.data(), sums.data()};
  }
};

int64_t drawn_on_cpu(const BFloat16* row, int64_t count, double temperature, double uniform) {
  OnCpu cpu(row, count, temperature);
  int64_t token = -7;
  if (temperature == 0) {
    CHECK(likeliest(cpu.values.data(), count, &token).ok());
    return token;
  }
  CHECK(run(cpu.job).ok());
  return draw(cpu.job, uniform);
}

void compare(const Rows& all) {
  const std::vector<int32_t> tokens = drawn_on_device(all);
  for (size_t i = 0; i < all.rows(); ++i)
    CHECK(tokens[i] == drawn_on_cpu(&all.logits[i * static_cast<size_t>(all.count)], all.count,
                                    all.temperatures[i], all.uniforms[i]));
}

// Numbers just at, below and above the edges between tokens, as the CPU adds its weights.
std::vector<double> edges(const std::vector<BFloat16>& row, double temperature) {
  OnCpu cpu(row.data(), static_cast<int64_t>(row.size()), temperature);
  CHECK(run(cpu.job).ok());
  double sum = 0, reached = 0;
  for (const double one : cpu.sums) sum += one;
  std::vector<double> all;
  for (size_t i = 0; i < row.size(); ++i) {
    if (i % static_cast<size_t>(kBlock) == 0) {
      reached = 0;
      for (size_t block = 0; block < i / static_cast<size_t>(kBlock); ++block) reached += cpu.sums[block];
    }
    reached += cpu.values[i];
    if (i % 37 != 5) continue;
    for (const double edge :
         {std::nextafter(reached / sum, 0), reached / sum, std::nextafter(reached / sum, 1)})
      if (edge < 1) all.push_back(edge);
  }
  return all;
}

}  // namespace

TEST(tokens_are_the_cpus_at_every_count_and_temperature) {
  for (const int64_t count : {1, 2, 7, 8, 9, 255, 256, 257, 511, 4095, 4096, 4097, 12345}) {
    Rows all{count};
    unsigned seed = 0;
    for (const double temperature : {0.0, 0.3, 1.0, 1.7})
      for (const double uniform : {0.0, 0.37, 0.9, 1 - 0x1p-53})
        all.add(random_row(count, ++seed), temperature, uniform);
    compare(all);
  }
}

TEST(tokens_are_the_cpus_at_the_edges_between_them) {
  for (const double temperature : {1.0, 0.7}) {
    const std::vector<BFloat16> row = random_row(9001, 11);
    const std::vector<double> uniforms = edges(row, temperature);
    Rows all{9001};
    for (size_t i = 0; i < uniforms.size(); i += 16) all.add(row, temperature, uniforms[i + i / 16 % 3]);
    compare(all);
  }
}

TEST(the_first_of_the_largest_is_the_likeliest) {
  for (const int64_t first : {0, 300, 4095, 4096, 8000}) {
    std::vector<BFloat16> row(8192, number_of(-1));
    for (const int64_t at : {first, first + 1, int64_t{8191}}) row[static_cast<size_t>(at)] = number_of(2);
    Rows all{8192};
    all.add(row, 0, 0.5);
    CHECK(drawn_on_device(all)[0] == first);
  }
  Rows zeros{2};
  zeros.add({BFloat16{0x8000}, BFloat16{0}}, 0, 0);
  CHECK(drawn_on_device(zeros)[0] == 0);
}

// With sums of many sizes, the last of which rounding may leave below the aim.
TEST(weights_of_zero_are_never_drawn) {
  for (const int64_t count : {3, 300, 5000}) {
    std::vector<BFloat16> row(static_cast<size_t>(count), number_of(-kInfinity));
    row[1] = number_of(2), row[static_cast<size_t>(count) / 2] = number_of(2);
    Rows all{count};
    for (const double uniform : {0.0, 0.49, 0.51, 1 - 0x1p-53}) all.add(row, 1, uniform);
    compare(all);
  }
}

TEST(what_is_suppressed_is_as_if_it_could_not_be) {
  std::vector<BFloat16> row = random_row(5000, 3), lowered = row;
  for (int i = 100; i < 4900; ++i) lowered[static_cast<size_t>(i)] = number_of(-kInfinity);
  Rows all{5000};
  for (const double temperature : {0.0, 1.0})
    for (const double uniform : {0.01, 0.5, 0.99}) all.add(row, temperature, uniform);
  for (int32_t i = 0; i < 5; ++i)
    all.suppressed.push_back({i, 100, 4000}), all.suppressed.push_back({i, 4100, 800});
  const std::vector<int32_t> tokens = drawn_on_device(all);
  for (size_t i = 0; i < 5; ++i)
    CHECK(tokens[i] == drawn_on_cpu(lowered.data(), 5000, all.temperatures[i], all.uniforms[i]));
  CHECK(tokens[5] == drawn_on_cpu(row.data(), 5000, 1, 0.99));
}

TEST(a_row_that_cannot_be_drawn_from_says_so_and_leaves_others_alone) {
  const std::vector<BFloat16> good = random_row(4500, 5);
  for (const double temperature : {0.0, 1.0}) {
    Rows all{4500};
    for (const float bad : {kNan, kInfinity}) {
      for (const size_t at : {size_t{0}, size_t{4100}}) {
        std::vector<BFloat16> row = good;
        row[at] = number_of(bad);
        all.add(row, temperature, 0.3);
        all.add(good, temperature, 0.3);
      }
    }
    all.add(std::vector<BFloat16>(4500, number_of(-kInfinity)), temperature, 0.3);
    all.add(good, temperature, 0.3);
    all.suppressed.push_back({0, 0, 4500});  // NaN stays
    const std::vector<int32_t> tokens = drawn_on_device(all);
    for (size_t i = 0; i + 2 < all.rows(); i += 2)
      CHECK(status_of(tokens[i]).message() ==
            "[generate] logits: expected finite numbers, got NaN or infinity");
    CHECK(status_of(tokens[8]).message() ==
          "[generate] logits: expected a token that may be drawn, got none");
    for (size_t i = 1; i < all.rows(); i += 2)
      CHECK(status_of(tokens[i]).ok() && tokens[i] == drawn_on_cpu(good.data(), 4500, temperature, 0.3));
  }
}

TEST(what_is_not_taken_is_named) {
  const auto message = [](auto change) {
    double numbers[2] = {};
    BFloat16 logits[2] = {};
    int32_t tokens[2];
    Draws job;
    job.rows = 1, job.count = 2, job.logits = logits, job.temperatures = job.uniforms = numbers;
    job.tokens = tokens;
    void* workspace = numbers;
    change(job, workspace);
    return run(job, workspace).message();
  };
  CHECK(message([](Draws& job, void*&) { job.rows = 65536; }) ==
        "[generate] rows: expected 0 to 65535, got 65536");
  CHECK(message([](Draws& job, void*&) { job.count = 0; }) ==
        "[generate] count: expected 1 to 2147483647, got 0");
  CHECK(message([](Draws& job, void*&) { job.ranges = 1; }) ==
        "[generate] suppressed: expected an array, got none");
  CHECK(message([](Draws& job, void*&) { job.tokens = nullptr; }) ==
        "[generate] tokens: expected an array, got none");
  CHECK(message([](Draws&, void*& w) { w = nullptr; }) ==
        "[generate] workspace: expected an array, got none");
  CHECK(message([](Draws& job, void*&) { job.rows = 0, job.logits = nullptr; }).empty());
}
#endif
