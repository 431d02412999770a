// SPDX-License-Identifier: Apache-2.0
#include "kernels/ppo/advantage.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/common/cuda.h"
#include "kernels/common/thread_pool.h"
#include "kernels/ppo/group_sums.h"
#include "kernels/ppo/loss_blocks.h"
#include "kernels/ppo/ppo_cuda.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo {
namespace {

constexpr const char *kWhiten = "whiten", *kGroup = "group_advantage";

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
Status bad_entry(const char* op, T got, int64_t t) {
  const bool of_group = std::string(op) == kGroup;
  return invalid_argument(
      op, of_group ? "scores" : "x",
      std::string("finite numbers at ") + (of_group ? "valid samples" : "trainable tokens"),
      std::to_string(got) + " at position " + std::to_string(t));
}

template <typename T>
Status find_bad_entry(const char* op, const T* x, const uint8_t* mask, int64_t count) {
  for (int64_t t = 0; t < count; ++t)
    if ((!mask || mask[t]) && !std::isfinite(x[t])) return bad_entry(op, x[t], t);
  return {};
}

template <typename T>
Status read_fault(const char* op, const T* x, FaultWord word, void* stream) {
  const int64_t index = fault_of(word).index;
  T got;
  if (Status status = cuda::copy(op, &got, x + index, sizeof got, stream); !status.ok()) return status;
  return bad_entry(op, got, index);
}

Status check_scaling(const char* op, double eps, double min_std) {
  if (!(eps >= 0.0)) return invalid_argument(op, "eps", "a number of at least 0", std::to_string(eps));
  if (!(min_std >= 0.0))
    return invalid_argument(op, "min_std", "a number of at least 0", std::to_string(min_std));
  return {};
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

size_t moments_workspace_size(int64_t tokens, Device device) {
  if (device == Device::kCuda) return loss_blocks::workspace_bytes(tokens);
  return static_cast<size_t>(num_blocks(tokens)) * sizeof(BlockMoments);
}

template <typename T>
Status run_moments(const MomentsParams<T>& p, Moments* moments, void* workspace, Device device) {
  if (device == Device::kCuda) return moments_cuda(p, moments, workspace);
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
      Status status = find_bad_entry(kWhiten, p.x, p.trainable, p.tokens);
      if (!status.ok()) return status;
    }
    *moments = join(*moments, blocks[i].moments);
  }
  return {};
}

template <typename T>
Status moments_fault(const MomentsParams<T>& p, FaultWord word) {
  return read_fault(kWhiten, p.x, word, p.stream);
}

template <typename T>
Status run_whiten(const WhitenParams<T>& p, Device device) {
  if (Status status = check_scaling(kWhiten, p.eps, p.min_std); !status.ok()) return status;
  if (device == Device::kCuda) return whiten_cuda(p);
  TierKernels<T> tier;
  if (Status status = tier_kernels(&tier); !status.ok()) return status;
  const double variance = p.moments.count > 0.0 ? p.moments.m2 / p.moments.count : 0.0;
  const double scale = inverse_std(variance, p.eps, p.min_std);
  for_each_block(p.tokens, [&](int64_t i) {
    tier.whiten_block(p, scale, i * kBlockTokens, std::min(p.tokens, (i + 1) * kBlockTokens));
  });
  return {};
}

size_t group_workspace_size(int64_t samples, Device device) {
  if (device == Device::kCuda) return group_sums::workspace_bytes(samples);
  return static_cast<size_t>(samples) * sizeof(int64_t);
}

template <typename T>
Status group_fault(const GroupParams<T>& p, FaultWord word) {
  return read_fault(kGroup, p.scores, word, p.stream);
}

template <typename T>
Status run_group_advantage(const GroupParams<T>& p, void* workspace, Device device) {
  if (Status status = check_scaling(kGroup, p.eps, p.min_std); !status.ok()) return status;
  if (device == Device::kCuda) return group_advantage_cuda(p, workspace);
  Status status = find_bad_entry(kGroup, p.scores, p.valid, p.samples);
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
template Status moments_fault<float>(const MomentsParams<float>&, FaultWord);
template Status moments_fault<double>(const MomentsParams<double>&, FaultWord);
template Status group_fault<float>(const GroupParams<float>&, FaultWord);
template Status group_fault<double>(const GroupParams<double>&, FaultWord);
template Status run_whiten<float>(const WhitenParams<float>&, Device);
template Status run_whiten<double>(const WhitenParams<double>&, Device);
template Status run_group_advantage<float>(const GroupParams<float>&, void*, Device);
template Status run_group_advantage<double>(const GroupParams<double>&, void*, Device);

}  // namespace earnest::ppo
