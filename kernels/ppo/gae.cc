// SPDX-License-Identifier: Apache-2.0
#include "kernels/ppo/gae.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

#include "kernels/common/thread_pool.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo {
namespace {

// Names the first entry that made a scan fail. There may be none: a sum of large numbers can overflow too.
template <typename T>
Status find_bad_entry(const GaeParams<T>& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    const std::string place = " at token " + std::to_string(t);
    if (p.trainable[t]) {
      if (!std::isfinite(p.rewards[t])) {
        return invalid_argument("gae", "rewards", "finite numbers at trainable tokens",
                                std::to_string(p.rewards[t]) + place);
      }
      if (!std::isfinite(p.values[t])) {
        return invalid_argument("gae", "values", "finite numbers at trainable tokens",
                                std::to_string(p.values[t]) + place);
      }
    } else if (p.refuse_masked_rewards && !(p.rewards[t] == T(0))) {
      return invalid_argument("gae", "rewards", "0 at tokens that are not trainable",
                              std::to_string(p.rewards[t]) + place);
    }
  }
  return {};
}

}  // namespace

template <typename T>
Status check_gae(const GaeParams<T>& p) {
  if (!(p.gamma >= 0.0 && p.gamma <= 1.0)) {
    return invalid_argument("gae", "gamma", "a number in [0, 1]", std::to_string(p.gamma));
  }
  if (!(p.lam >= 0.0 && p.lam <= 1.0)) {
    return invalid_argument("gae", "lam", "a number in [0, 1]", std::to_string(p.lam));
  }
  if (p.tokens < 0 || p.sequences < 0)
    return invalid_argument("gae", "cu_seqlens", "sizes of at least 0", "less");
  if (p.cu_seqlens[0] != 0) {
    return invalid_argument("gae", "cu_seqlens", "0 at the start", std::to_string(p.cu_seqlens[0]));
  }
  for (int64_t i = 0; i < p.sequences; ++i) {
    if (p.cu_seqlens[i] <= p.cu_seqlens[i + 1]) continue;
    return invalid_argument(
        "gae", "cu_seqlens", "numbers that never fall",
        std::to_string(p.cu_seqlens[i]) + " before " + std::to_string(p.cu_seqlens[i + 1]));
  }
  if (p.cu_seqlens[p.sequences] != p.tokens) {
    return invalid_argument("gae", "cu_seqlens",
                            std::to_string(p.tokens) + " (the number of tokens) at the end",
                            std::to_string(p.cu_seqlens[p.sequences]));
  }
  return {};
}

template <typename T>
Status run_gae(const GaeParams<T>& p, Device device) {
  if (Status status = check_device("gae", device); !status.ok()) return status;
  if (Status status = check_gae(p); !status.ok()) return status;
  TierKernels<T> tier;
  if (Status status = tier_kernels(&tier); !status.ok()) return status;

  std::atomic<bool> good{true};
  const auto first_from = [&](int64_t token) {
    return std::lower_bound(p.cu_seqlens, p.cu_seqlens + p.sequences, token) - p.cu_seqlens;
  };
  const auto task = [&](int64_t i) {
    if (!tier.gae_sequences(p, first_from(i * kTaskTokens), first_from((i + 1) * kTaskTokens)))
      good.store(false, std::memory_order_relaxed);
  };
  const int64_t tasks = p.tokens / kTaskTokens + 1;
  if (p.tokens < kParallelTokens) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
  } else {
    parallel_for(tasks, task);
  }
  return good ? Status{} : find_bad_entry(p);
}

template Status check_gae<float>(const GaeParams<float>&);
template Status check_gae<double>(const GaeParams<double>&);
template Status run_gae<float>(const GaeParams<float>&, Device);
template Status run_gae<double>(const GaeParams<double>&, Device);

}  // namespace earnest::ppo
