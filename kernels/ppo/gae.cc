// SPDX-License-Identifier: Apache-2.0
#include "kernels/ppo/gae.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

#include "kernels/common/cuda.h"
#include "kernels/common/thread_pool.h"
#include "kernels/ppo/gae_pieces.h"
#include "kernels/ppo/ppo_cuda.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo {
namespace {

std::string text_of(auto number) { return std::to_string(number); }

// What is said of token t, where `got` is an entry of the array that `argument` names (gae_faults.h).
template <typename T>
Status bad_entry(int argument, T got, int64_t t) {
  const bool lost = argument == gae_faults::kLostReward;
  return invalid_argument("gae", argument == gae_faults::kValue ? "values" : "rewards",
                          lost ? "0 at tokens that are not trainable" : "finite numbers at trainable tokens",
                          text_of(got) + " at token " + text_of(t));
}

// Names the first entry that made a scan fail. There may be none: a sum of large numbers can overflow too.
template <typename T>
Status find_bad_entry(const GaeParams<T>& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    if (p.trainable[t]) {
      if (!std::isfinite(p.rewards[t])) return bad_entry(gae_faults::kReward, p.rewards[t], t);
      if (!std::isfinite(p.values[t])) return bad_entry(gae_faults::kValue, p.values[t], t);
    } else if (p.refuse_masked_rewards && !(p.rewards[t] == T(0))) {
      return bad_entry(gae_faults::kLostReward, p.rewards[t], t);
    }
  }
  return {};
}

Status check_settings(double gamma, double lam, int64_t tokens, int64_t sequences) {
  if (!(gamma >= 0.0 && gamma <= 1.0))
    return invalid_argument("gae", "gamma", "a number in [0, 1]", text_of(gamma));
  if (!(lam >= 0.0 && lam <= 1.0)) return invalid_argument("gae", "lam", "a number in [0, 1]", text_of(lam));
  if (tokens < 0 || sequences < 0)
    return invalid_argument("gae", "cu_seqlens", "sizes of at least 0", "less");
  return {};
}

Status bad_start(int32_t first) {
  return invalid_argument("gae", "cu_seqlens", "0 at the start", text_of(first));
}

Status bad_step(int32_t before, int32_t after) {
  return invalid_argument("gae", "cu_seqlens", "numbers that never fall",
                          text_of(before) + " before " + text_of(after));
}

Status bad_end(int64_t tokens, int32_t last) {
  return invalid_argument("gae", "cu_seqlens", text_of(tokens) + " (the number of tokens) at the end",
                          text_of(last));
}

}  // namespace

template <typename T>
Status check_gae(const GaeParams<T>& p) {
  if (Status status = check_settings(p.gamma, p.lam, p.tokens, p.sequences); !status.ok()) return status;
  if (p.cu_seqlens[0] != 0) return bad_start(p.cu_seqlens[0]);
  for (int64_t i = 0; i < p.sequences; ++i)
    if (p.cu_seqlens[i] > p.cu_seqlens[i + 1]) return bad_step(p.cu_seqlens[i], p.cu_seqlens[i + 1]);
  if (p.cu_seqlens[p.sequences] != p.tokens) return bad_end(p.tokens, p.cu_seqlens[p.sequences]);
  return {};
}

template <typename T>
Status gae_fault(const GaeParams<T>& p, FaultWord word) {
  const Fault fault = fault_of(word);
  if (fault.argument == gae_faults::kBounds) {
    int32_t bounds[2] = {};
    const size_t count = fault.index < p.sequences ? 2 : 1;
    Status status = cuda::copy("gae", bounds, p.cu_seqlens + fault.index, count * sizeof(int32_t), p.stream);
    if (!status.ok()) return status;
    if (fault.index == 0 && bounds[0] != 0) return bad_start(bounds[0]);
    return count == 2 ? bad_step(bounds[0], bounds[1]) : bad_end(p.tokens, bounds[0]);
  }
  T got;
  const T* array = fault.argument == gae_faults::kValue ? p.values : p.rewards;
  if (Status status = cuda::copy("gae", &got, array + fault.index, sizeof got, p.stream); !status.ok())
    return status;
  return bad_entry(fault.argument, got, fault.index);
}

size_t gae_workspace_size(int64_t tokens, int64_t /*sequences*/, Device device) {
  return device == Device::kCpu ? 0 : gae_pieces::workspace_bytes(gae_pieces::num_windows<double>(tokens));
}

template <typename T>
Status run_gae(const GaeParams<T>& p, Device device) {
  if (device == Device::kCuda) {
    if (Status status = check_settings(p.gamma, p.lam, p.tokens, p.sequences); !status.ok()) return status;
    return gae_cuda(p);
  }
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
template Status gae_fault<float>(const GaeParams<float>&, FaultWord);
template Status gae_fault<double>(const GaeParams<double>&, FaultWord);
template Status run_gae<float>(const GaeParams<float>&, Device);
template Status run_gae<double>(const GaeParams<double>&, Device);

}  // namespace earnest::ppo
