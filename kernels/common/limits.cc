// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>

#include "kernels/common/cpu_tier.h"
#include "kernels/common/limits_loops.h"
#include "kernels/common/thread_pool.h"

namespace earnest::limits {
namespace {

constexpr double kLeastPass = 200e-6;  // long enough that waking threads and reading the clock do not count
constexpr int64_t kMostBytes = int64_t{1} << 36;
constexpr size_t kAlignment = 4096;

std::atomic<float> sink;  // what keeps the compiler from dropping a loop

Status tier_loops(Loops* loops) {
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  *loops = scalar_loops();
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx2) *loops = avx2_loops();
  if (tier == CpuTier::kAvx512) *loops = avx512_loops();
  if (tier == CpuTier::kAvx512Bf16) *loops = avx512_bf16_loops();
#endif
  return {};
}

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<float, Free>;

// `parts` areas of `count` floats each, touched by the thread that fills them.
Status allocate(int64_t count, int64_t parts, Memory* memory) {
  const size_t bytes = static_cast<size_t>(count * parts) * sizeof(float);
  memory->reset(static_cast<float*>(
      std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment)));
  if (*memory == nullptr)
    return {StatusCode::kOutOfMemory, "[limits] bytes: expected memory for them, got none"};
  parallel_for(parts, [&](int64_t part) { std::fill_n(memory->get() + part * count, count, 1.0f); });
  return {};
}

Status check(int64_t bytes, double seconds) {
  if (bytes < 1 || bytes > kMostBytes) {
    return invalid_argument("limits", "bytes", "1 to 2^36", std::to_string(bytes));
  }
  if (!(seconds > 0 && seconds <= 60)) {
    return invalid_argument("limits", "seconds", "above 0, at most 60", std::to_string(seconds));
  }
  return {};
}

// Calls pass(repeats) until `seconds` have gone by; the best work a second, where one repeat is `work`.
template <typename Pass>
double best_rate(double work, double seconds, const Pass& pass) {
  using Clock = std::chrono::steady_clock;
  const auto took = [](Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  };
  int64_t repeats = 1;
  double best = 0;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    pass(repeats);
    const double time = took(start);
    if (time < kLeastPass) {
      repeats *= 2;
    } else {
      best = std::max(best, work * static_cast<double>(repeats) / time);
    }
  } while (took(begin) < seconds || best == 0);
  return best;
}

int64_t floats_of_a_part(int64_t bytes, int64_t parts) {
  const int64_t chunk_bytes = kChunk * static_cast<int64_t>(sizeof(float));
  return std::max<int64_t>(1, bytes / parts / chunk_bytes) * kChunk;
}

}  // namespace

Status read_rate(int64_t bytes, double seconds, double* rate) {
  Loops loops;
  if (Status status = check(bytes, seconds); !status.ok()) return status;
  if (Status status = tier_loops(&loops); !status.ok()) return status;
  const int64_t parts = num_threads(), count = floats_of_a_part(bytes, parts);
  Memory memory;
  if (Status status = allocate(count, parts, &memory); !status.ok()) return status;
  const double work = static_cast<double>(count * parts) * sizeof(float);
  *rate = best_rate(work, seconds, [&](int64_t repeats) {
    parallel_for(parts, [&](int64_t part) {
      const float* mine = memory.get() + part * count;
      float sum = 0;
      for (int64_t i = 0; i < repeats; ++i) sum += loops.read(mine, count);
      sink = sum;
    });
  });
  return {};
}

Status copy_rate(int64_t bytes, double seconds, double* rate) {
  Loops loops;
  if (Status status = check(bytes, seconds); !status.ok()) return status;
  if (Status status = tier_loops(&loops); !status.ok()) return status;
  const int64_t parts = num_threads(), count = floats_of_a_part(bytes, parts);
  Memory from, to;
  if (Status status = allocate(count, parts, &from); !status.ok()) return status;
  if (Status status = allocate(count, parts, &to); !status.ok()) return status;
  const double work = 2.0 * static_cast<double>(count * parts) * sizeof(float);
  *rate = best_rate(work, seconds, [&](int64_t repeats) {
    parallel_for(parts, [&](int64_t part) {
      for (int64_t i = 0; i < repeats; ++i)
        loops.copy(from.get() + part * count, to.get() + part * count, count);
    });
  });
  return {};
}

Status arithmetic_rate(Arithmetic arithmetic, double seconds, double* rate) {
  constexpr int64_t kRounds = 10'000;
  Loops loops;
  if (Status status = check(1, seconds); !status.ok()) return status;
  if (Status status = tier_loops(&loops); !status.ok()) return status;
  const bool bfloat16 = arithmetic == Arithmetic::kBfloat16;
  const auto loop = bfloat16 ? loops.dot_bfloat16 : loops.multiply_add;
  if (loop == nullptr) {
    *rate = 0;
    return {};
  }
  const int64_t threads = num_threads();
  const double work =
      static_cast<double>((bfloat16 ? loops.dot_operations : loops.operations) * kRounds * threads);
  *rate = best_rate(work, seconds, [&](int64_t repeats) {
    parallel_for(threads, [&](int64_t) { sink = loop(kRounds * repeats); });
  });
  return {};
}

}  // namespace earnest::limits
