// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/lanes.h"
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

// Lanes beyond the tasks, tasks that do not divide, more lanes than shares; a lane alone, and neighbours in
// order where one lane does all.
TEST(lanes_run_each_task_once_and_keep_apart) {
  for (int threads : {1, 2, 3, 100}) {
    earnest::set_num_threads(threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      for (int64_t lanes : {1, 2, 5, 100}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(count)), busy(static_cast<size_t>(lanes));
        std::vector<int64_t> order;
        earnest::run_in_lanes(count, lanes, [&](int64_t i, int64_t lane) {
          CHECK(++busy[static_cast<size_t>(lane)] == 1);
          ++seen[static_cast<size_t>(i)];
          if (lanes == 1) order.push_back(i);
          --busy[static_cast<size_t>(lane)];
        });
        for (auto& times : seen) CHECK(times == 1);
        for (size_t i = 0; i < order.size(); ++i) CHECK(order[i] == static_cast<int64_t>(i));
      }
    }
  }
  earnest::set_num_threads(2);
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

// Plain writes of a task must be seen by the caller, and those of the caller by the next task: what a wrong
// memory order breaks, and the thread sanitizer sees even where the processor forgives.
TEST(jobs_follow_one_another_without_a_race) {
  for (int threads : {2, 3, 5}) {
    earnest::set_num_threads(threads);
    std::vector<int64_t> values(64, 0);
    for (int job = 0; job < 2000; ++job) {
      const int64_t before = std::accumulate(values.begin(), values.end(), int64_t{0});
      CHECK(before == 64 * job);
      earnest::parallel_for(64, [&](int64_t i) { ++values[static_cast<size_t>(i)]; });
    }
  }
}

// Long pauses put the workers to sleep, short ones find them awake.
TEST(workers_that_sleep_are_woken) {
  earnest::set_num_threads(2);
  for (int microseconds : {0, 30, 60, 500, 5000}) {
    for (int job = 0; job < 20; ++job) {
      const auto begin = std::chrono::steady_clock::now();
      while (std::chrono::steady_clock::now() - begin < std::chrono::microseconds(microseconds)) {
      }
      // Neither task can end before the other has begun, so two threads must take part; a job in which the
      // caller does both would hang here, and would not be a job of two.
      std::atomic<int> begun{0};
      earnest::parallel_for(2, [&](int64_t) {
        ++begun;
        while (begun < 2) std::this_thread::yield();
      });
      CHECK(begun == 2);
    }
  }
}

TEST(many_callers_at_once_each_get_their_own_results) {
  earnest::set_num_threads(3);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&wrong, caller] {
      for (int job = 0; job < 300; ++job) {
        std::vector<int> values(17, 0);
        earnest::parallel_for(17, [&](int64_t i) { values[static_cast<size_t>(i)] = caller + job; });
        for (int value : values) wrong += value != caller + job;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

#if !defined(__SANITIZE_THREAD__)  // which forbids threads in a forked child
TEST(a_forked_child_has_a_pool_of_its_own) {
  earnest::set_num_threads(3);
  earnest::parallel_for(8, [](int64_t) {});
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> sum{0};
    for (int job = 0; job < 100; ++job) earnest::parallel_for(8, [&](int64_t) { ++sum; });
    _exit(sum == 800 && earnest::num_threads() == 3 ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  std::atomic<int> sum{0};
  earnest::parallel_for(8, [&](int64_t) { ++sum; });
  CHECK(sum == 8);
}
#endif

TEST(an_unknown_tier_is_an_error_and_changes_nothing) {
  earnest::CpuTier before, after;
  CHECK(earnest::current_cpu_tier(&before).ok());
  const earnest::Status status = earnest::force_cpu_tier("mmx");
  CHECK(!status.ok());
  CHECK(status.message().find("'mmx'") != std::string::npos);
  CHECK(earnest::current_cpu_tier(&after).ok());
  CHECK(before == after);
}
