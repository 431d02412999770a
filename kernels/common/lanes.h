// SPDX-License-Identifier: Apache-2.0
// Tasks that lie side by side in memory, handed out so that each thread reads in order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "kernels/common/thread_pool.h"

namespace earnest {

// Runs task(i, lane) for i in [0, count); at most `lanes` of them at one time, each lane with its own number.
// A lane takes neighbours one after another from a share of its own, so that what it reads is one stream, and
// then helps with the shares of others.
template <typename Task>
void run_in_lanes(int64_t count, int64_t lanes, const Task& task) {
  if (lanes <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i, 0);
    return;
  }
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  constexpr int64_t kMost = 64;
  Share shares[kMost];
  const int64_t parts = std::min(lanes, kMost);
  for (int64_t part = 0; part < parts; ++part) {
    shares[part].next.store(part * count / parts, std::memory_order_relaxed);
    shares[part].end = (part + 1) * count / parts;
  }
  parallel_for(lanes, [&](int64_t lane) {
    for (int64_t turn = 0; turn < parts; ++turn) {
      Share& share = shares[(lane + turn) % parts];
      for (int64_t i = share.next.fetch_add(1); i < share.end; i = share.next.fetch_add(1)) task(i, lane);
    }
  });
}

}  // namespace earnest
