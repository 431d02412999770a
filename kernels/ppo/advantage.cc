// SPDX-License-Identifier: Apache-2.0
#include "kernels/ppo/advantage.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/common/thread_pool.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo {
namespace {

struct BlockMoments {
  Moments moments;
  bool good;
};

int64_t num_blocks(int64_t tokens) { return tokens / kBlockTokens + (tokens % kBlockTokens != 0); }

template <typename Task>
void for_each_block(int64_t tokens, const Task& task) {
  const int64_t blocks = num_blocks(tokens);
  if (tokens < kParallelTokens) {
    for (int64_t i = 0; i < blocks; ++i) task(i);
  } else {
    parallel_for(blocks, task);
  }
}

template <typename T>
Status find_bad_entry(const char* op, const char* argument, const char* where, const T* x,
                      const uint8_t* mask, int64_t count) {
  for (int64_t t = 0; t < count; ++t) {
    if ((mask && !mask[t]) || std::isfinite(x[t])) continue;
    return invalid_argument(op, argument, std::string("finite numbers at ") + where,
                            std::to_string(x[t]) + " at position " + std::to_string(t));
  }
  return {};
}

Status check_scaling(const char* op, double eps, double min_std) {
  if (!(eps >= 0.0)) return invalid_argument(op, "eps", "a number of at least 0", std::to_string(eps));
  if (!(min_std >= 0.0))
    return invalid_argument(op, "min_std", "a number of at least 0", std::to_string(min_std));
  return {};
}

// 1 / sqrt(var + eps), or 1 where the spread is too small to be told from noise.
double inverse_std(double variance, double eps, double min_std) {
  return variance > 0.0 && std::sqrt(variance) >= min_std ? 1.0 / std::sqrt(variance + eps) : 1.0;
}

// Advantages of the members order[begin, end) of one group.
template <typename T>
void group_advantages(const GroupParams<T>& p, const int64_t* order, int64_t begin, int64_t end) {
  const double n = static_cast<double>(end - begin);
  if (end - begin < 2) return;
  double mean = 0.0, m2 = 0.0;
  for (int64_t i = begin; i < end; ++i) mean += p.scores[order[i]];
  mean /= n;
  for (int64_t i = begin; i < end; ++i) m2 += (p.scores[order[i]] - mean) * (p.scores[order[i]] - mean);
  // s - mean of the others = (s - mean) n / (n - 1)
  double scale = p.baseline == GroupBaseline::kLeaveOneOut ? n / (n - 1.0) : 1.0;
  if (p.normalize_std) scale *= inverse_std(m2 / (n - 1.0), p.eps, p.min_std);
  for (int64_t i = begin; i < end; ++i) {
    p.advantages[order[i]] = static_cast<T>((p.scores[order[i]] - mean) * scale);
  }
}

}  // namespace

Moments join(const Moments& a, const Moments& b) {
  if (a.count == 0.0) return b;
  if (b.count == 0.0) return a;
  const double count = a.count + b.count, distance = b.mean - a.mean;
  return {count, a.mean + distance * (b.count / count),
          a.m2 + b.m2 + distance * distance * (a.count * b.count / count)};
}

size_t moments_workspace_size(int64_t tokens) {
  return static_cast<size_t>(num_blocks(tokens)) * sizeof(BlockMoments);
}

template <typename T>
Status run_moments(const MomentsParams<T>& p, Moments* moments, void* workspace, Device device) {
  if (Status status = check_device("whiten", device); !status.ok()) return status;
  TierKernels<T> tier;
  if (Status status = tier_kernels(&tier); !status.ok()) return status;
  auto* blocks = static_cast<BlockMoments*>(workspace);
  for_each_block(p.tokens, [&](int64_t i) {
    const int64_t begin = i * kBlockTokens, end = std::min(p.tokens, begin + kBlockTokens);
    blocks[i].good = tier.moments_block(p, begin, end, &blocks[i].moments);
  });
  *moments = {};
  for (int64_t i = 0; i < num_blocks(p.tokens); ++i) {
    if (!blocks[i].good) {  // or its squares overflow
      Status status = find_bad_entry("whiten", "x", "trainable tokens", p.x, p.trainable, p.tokens);
      if (!status.ok()) return status;
    }
    *moments = join(*moments, blocks[i].moments);
  }
  return {};
}

template <typename T>
Status run_whiten(const WhitenParams<T>& p, Device device) {
  if (Status status = check_device("whiten", device); !status.ok()) return status;
  if (Status status = check_scaling("whiten", p.eps, p.min_std); !status.ok()) return status;
  TierKernels<T> tier;
  if (Status status = tier_kernels(&tier); !status.ok()) return status;
  const double variance = p.moments.count > 0.0 ? p.moments.m2 / p.moments.count : 0.0;
  const double scale = inverse_std(variance, p.eps, p.min_std);
  for_each_block(p.tokens, [&](int64_t i) {
    tier.whiten_block(p, scale, i * kBlockTokens, std::min(p.tokens, (i + 1) * kBlockTokens));
  });
  return {};
}

size_t group_workspace_size(int64_t samples) { return static_cast<size_t>(samples) * sizeof(int64_t); }

template <typename T>
Status run_group_advantage(const GroupParams<T>& p, void* workspace, Device device) {
  constexpr const char* kOp = "group_advantage";
  if (Status status = check_device(kOp, device); !status.ok()) return status;
  if (Status status = check_scaling(kOp, p.eps, p.min_std); !status.ok()) return status;
  Status status = find_bad_entry(kOp, "scores", "valid samples", p.scores, p.valid, p.samples);
  if (!status.ok()) return status;

  auto* order = static_cast<int64_t*>(workspace);
  int64_t members = 0;
  for (int64_t i = 0; i < p.samples; ++i) {
    p.advantages[i] = T(0);
    if (!p.valid || p.valid[i]) order[members++] = i;
  }
  // Ties broken by position: sums are taken in the order of the samples.
  std::sort(order, order + members, [&](int64_t a, int64_t b) {
    return p.groups[a] != p.groups[b] ? p.groups[a] < p.groups[b] : a < b;
  });
  for (int64_t begin = 0, end = 0; begin < members; begin = end) {
    while (end < members && p.groups[order[end]] == p.groups[order[begin]]) ++end;
    group_advantages(p, order, begin, end);
  }
  return {};
}

template Status run_moments<float>(const MomentsParams<float>&, Moments*, void*, Device);
template Status run_moments<double>(const MomentsParams<double>&, Moments*, void*, Device);
template Status run_whiten<float>(const WhitenParams<float>&, Device);
template Status run_whiten<double>(const WhitenParams<double>&, Device);
template Status run_group_advantage<float>(const GroupParams<float>&, void*, Device);
template Status run_group_advantage<double>(const GroupParams<double>&, void*, Device);

}  // namespace earnest::ppo
