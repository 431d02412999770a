// SPDX-License-Identifier: Apache-2.0
// Path sm90a's forward schedules: those that take 64 keys at a time differ in when things happen alone, not
// in a bit. test_attention_cuda.cc tries the one that is predicted to be fastest, which takes 128, on all of
// its cases.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "kernels/attention/attention_plan.h"
#include "tests/cpp/check.h"
#include "tests/cpp/plain_attention.h"

#if defined(EARNEST_WITH_CUDA)
namespace {

using namespace earnest;
using namespace earnest::attention;
using plain_attention::Case;
using plain_attention::number_of;
using plain_attention::run_on_device;
using plain_attention::run_plain;

template <typename T>
Case<T> by(Case<T> c, Schedule schedule) {
  c.p.path = CudaPath::kSm90a, c.p.schedule = schedule;
  const Status status = run_on_device(&c);
  CHECK(status.ok());
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
  return c;
}

bool can_run() {
  Case<BFloat16> any({1}, {1}, 1, 1, 64, true);
  any.p.path = CudaPath::kSm90a;
  const Status status = run_on_device(&any);
  const bool lacks_it =
      status.message().find("path: expected sm90a on compute capability 9.0") != std::string::npos;
  CHECK(status.ok() || lacks_it);
  return !lacks_it;
}

template <typename T>
bool same_results(const Case<T>& a, const Case<T>& b) {
  return std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(T)) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(double)) == 0;
}

template <typename T>
double largest_error(const Case<T>& got, const Case<T>& right) {
  double largest = 0;
  for (size_t i = 0; i < got.out.size(); ++i) {
    const double error = std::abs(widen(got.out[i]) - widen(right.out[i]));
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
  return largest;
}

template <typename T>
void expect_the_same_bits(const Case<T>& c) {
  const Case<T> series = by(c, Schedule::kSeries);
  for (const Schedule other : {Schedule::kTurns, Schedule::kAhead, Schedule::kBoth})
    CHECK(same_results(by(c, other), series));
}

template <typename T>
void expect_right_in_each(const Case<T>& c) {
  Case<T> right = c, plain = c;
  CHECK(reference_forward(right.on_host(), {right.out.data(), right.lse.data()}).ok());
  run_plain(&plain);
  const double most = 2 * largest_error(plain, right);
  CHECK_NEAR(largest_error(by(c, Schedule::kSeries), right), 0, most);
  CHECK_NEAR(largest_error(by(c, Schedule::kWide), right), 0, most);
  expect_the_same_bits(c);
}

}  // namespace

// Tiles of rows with a half, one and several tiles of keys, some of them hidden in part; of the first case
// the ring of either size goes round more than once.
TEST(schedules_are_right_and_those_of_64_keys_have_the_same_bits) {
  if (!can_run()) return;
  expect_right_in_each(Case<BFloat16>({80, 0, 3}, {420, 5, 60}, 2, 1, 64, true));
  expect_right_in_each(Case<Float16>({9, 64}, {9, 200}, 4, 2, 128, false));
  expect_right_in_each(Case<Float16>({65}, {129}, 2, 1, 64, true));
}

// In the middle of a row's keys, in the last tile, and in keys that no row sees.
TEST(what_is_not_finite_is_the_same_by_each_schedule) {
  if (!can_run()) return;
  Case<BFloat16> c({140}, {140}, 1, 1, 128, true);
  c.value(70, 0)[5] = number_of<BFloat16>(std::numeric_limits<double>::infinity());
  c.value(129, 0)[100] = BFloat16{0x7fc0};
  c.value(139, 0)[64] = BFloat16{0x7fc0};
  expect_the_same_bits(c);
  for (const Schedule schedule : {Schedule::kBoth, Schedule::kWide}) {
    Case<BFloat16> found = by(c, schedule);
    for (int token = 0; token < 140; ++token) {
      for (const auto& [key, d] : {std::pair{70, 5}, {129, 100}, {139, 64}})
        CHECK(std::isfinite(widen(found.result(token, 0)[d])) == (token < key));
      CHECK(std::isfinite(widen(found.result(token, 0)[6])));
    }
  }
}

// As in test_attention_cuda.cc, but of a key behind the 64th: the last query sees it with a weight of 0, and
// key 0, 64 before it, with a half.
TEST(a_weight_of_0_makes_nan_of_infinity_behind_64_keys_too) {
  if (!can_run()) return;
  Case<BFloat16> c({66}, {66}, 1, 1, 64, true);
  for (int d = 0; d < 64; ++d) {
    c.query(65, 0)[d] = number_of<BFloat16>(0.5);
    c.key(64, 0)[d] = number_of<BFloat16>(-64);
    c.key(0, 0)[d] = c.key(65, 0)[d] = number_of<BFloat16>(64);
  }
  c.value(64, 0)[3] = number_of<BFloat16>(std::numeric_limits<double>::infinity());
  for (const Schedule schedule : {Schedule::kBoth, Schedule::kWide}) {
    Case<BFloat16> found = by(c, schedule);
    CHECK(std::isinf(widen(found.result(64, 0)[3])) && std::isnan(widen(found.result(65, 0)[3])));
    CHECK(std::isfinite(widen(found.result(65, 0)[4])) && std::isfinite(widen(found.result(63, 0)[3])));
  }
}

TEST(a_schedule_belongs_to_path_sm90a) {
  Case<BFloat16> c({1}, {1}, 1, 1, 64, true);
  c.p.path = CudaPath::kSm80, c.p.schedule = Schedule::kTurns;
  CHECK(run_on_device(&c).message() ==
        "[attention] schedule: expected best on other paths than sm90a, got another");
}
#endif
