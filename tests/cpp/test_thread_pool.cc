// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <thread>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/thread_pool.h"
#include "tests/cpp/check.h"

TEST(each_index_runs_exactly_once) {
  for (int threads : {1, 2, 3, 8}) {
    earnest::set_num_threads(threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      earnest::parallel_for(count, [&](int64_t i) { ++seen[static_cast<size_t>(i)]; });
      for (auto& times : seen) CHECK(times == 1);
    }
  }
}

TEST(nested_and_concurrent_calls_finish) {
  earnest::set_num_threads(4);
  std::atomic<int> total{0};
  auto job = [&] {
    for (int repeat = 0; repeat < 50; ++repeat) {
      earnest::parallel_for(10, [&](int64_t) { earnest::parallel_for(10, [&](int64_t) { ++total; }); });
    }
  };
  std::thread other(job);
  job();
  other.join();
  CHECK(total == 2 * 50 * 100);
}

TEST(an_unknown_tier_is_an_error_and_changes_nothing) {
  earnest::CpuTier before, after;
  CHECK(earnest::current_cpu_tier(&before).ok());
  const earnest::Status status = earnest::force_cpu_tier("mmx");
  CHECK(!status.ok());
  CHECK(status.message().find("'mmx'") != std::string::npos);
  CHECK(earnest::current_cpu_tier(&after).ok());
  CHECK(before == after);
}
