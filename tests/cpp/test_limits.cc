// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/limits.h"
#include "kernels/common/thread_pool.h"
#include "tests/cpp/check.h"
#include "tests/cpp/tiers.h"

using earnest::limits::Arithmetic;

namespace {
constexpr double kSeconds = 2e-3;
}

TEST(every_tier_and_size_gives_a_rate) {
  for (const std::string& tier : usable_tiers()) {
    CHECK(earnest::force_cpu_tier(tier).ok());
    for (int threads : {1, 3}) {
      earnest::set_num_threads(threads);
      for (int64_t bytes : {1, 4097, 300'000}) {
        double read = 0, copy = 0;
        CHECK(earnest::limits::read_rate(bytes, kSeconds, &read).ok());
        CHECK(earnest::limits::copy_rate(bytes, kSeconds, &copy).ok());
        CHECK(read > 0 && read < 1e14);  // no lower bound: tests share their machine
        CHECK(copy > 0 && copy < 1e14);
      }
      double fp32 = 0, bf16 = 1;
      CHECK(earnest::limits::arithmetic_rate(Arithmetic::kFloat32, kSeconds, &fp32).ok());
      CHECK(earnest::limits::arithmetic_rate(Arithmetic::kBfloat16, kSeconds, &bf16).ok());
      CHECK(fp32 > 0 && fp32 < 1e14);
      CHECK((bf16 > 0) == (tier == "avx512_bf16"));
    }
  }
  CHECK(earnest::force_cpu_tier("").ok());
}

TEST(sizes_and_times_out_of_range_are_errors) {
  double rate = 0;
  CHECK(!earnest::limits::read_rate(0, kSeconds, &rate).ok());
  CHECK(!earnest::limits::copy_rate(int64_t{1} << 40, kSeconds, &rate).ok());
  CHECK(!earnest::limits::read_rate(1, 0.0, &rate).ok());
  CHECK(!earnest::limits::arithmetic_rate(Arithmetic::kFloat32, 1e9, &rate).ok());
}
