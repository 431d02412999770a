// SPDX-License-Identifier: Apache-2.0
#include "kernels/ppo/loss.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <string>

#include "kernels/common/cuda.h"
#include "kernels/common/lanes.h"
#include "kernels/common/thread_pool.h"
#include "kernels/ppo/loss_blocks.h"
#include "kernels/ppo/ppo_cuda.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo {
namespace {

constexpr const char* kOp = "ppo_loss";
constexpr int kBlockDoubles = kNumSums + 1;  // the sums of a block, and 1.0 if it must be searched

int64_t num_blocks(int64_t tokens) { return tokens / kBlockTokens + (tokens % kBlockTokens != 0); }

// The arrays whose entries must be finite at trainable tokens, in the order in which they are named; null for
// those that play no part. The normaliser comes after them.
template <typename T>
struct Input {
  const char* name;
  const T* x;
};
constexpr int kInputs = 9;
template <typename T>
std::array<Input<T>, kInputs> inputs_of(const LossParams<T>& p) {
  return {{{"logp", p.logp},
           {"logp_old", p.logp_old},
           {"advantages", p.advantages},
           {"values", p.values},
           {"values_old", p.values && p.clip_value != kNoClip ? p.values_old : nullptr},
           {"returns", p.values ? p.returns : nullptr},
           {"logp_ref", p.logp_ref},
           {"entropy", p.entropy},
           {"weights", p.weights}}};
}

template <typename T>
Status bad_entry(const char* name, T got, int64_t t) {
  return invalid_argument(kOp, name, "finite numbers at trainable tokens",
                          std::to_string(got) + " at token " + std::to_string(t));
}
template <typename T>
Status bad_normalizer(T got, int64_t t) {
  return invalid_argument(kOp, "normalizer", "numbers above 0 at trainable tokens",
                          std::to_string(got) + " at token " + std::to_string(t));
}

// Names the first entry from `begin` on that is not as it must be. None may be wrong: a sum of large numbers
// can overflow too.
template <typename T>
Status find_bad_entry(const LossParams<T>& p, int64_t begin) {
  const auto inputs = inputs_of(p);
  for (int64_t t = begin; t < p.tokens; ++t) {
    if (!p.trainable[t]) continue;
    for (const auto& input : inputs)
      if (input.x != nullptr && !std::isfinite(input.x[t])) return bad_entry(input.name, input.x[t], t);
    if (p.token_normalizer && !(p.token_normalizer[t] > T(0) && std::isfinite(p.token_normalizer[t])))
      return bad_normalizer(p.token_normalizer[t], t);
  }
  return {};
}

}  // namespace

template <typename T>
Status check_loss(const LossParams<T>& p) {
  const auto number = [](double x) { return std::to_string(x); };
  if (p.tokens < 0 || p.tokens > kMostTokens) {
    return invalid_argument(kOp, "tokens", "a number in [0, 2^56]", std::to_string(p.tokens));
  }
  if (!(p.clip_low >= 0.0 && p.clip_low < 1.0)) {
    return invalid_argument(kOp, "clip", "a number in [0, 1)", number(p.clip_low));
  }
  if (!(p.clip_high >= 0.0 && std::isfinite(p.clip_high))) {
    return invalid_argument(kOp, "clip_high", "a number of at least 0", number(p.clip_high));
  }
  if (!(p.clip_value > 0.0)) {
    return invalid_argument(kOp, "clip_value", "a number above 0, or none", number(p.clip_value));
  }
  if (!(p.dual_clip > 1.0))
    return invalid_argument(kOp, "dual_clip", "a number above 1, or none", number(p.dual_clip));
  if (!(p.normalizer >= 0.0 && std::isfinite(p.normalizer))) {
    return invalid_argument(kOp, "normalizer", "a number above 0", number(p.normalizer));
  }
  if (p.values && !p.returns) return invalid_argument(kOp, "returns", "an array beside values", "none");
  if (p.values && !p.values_old && p.clip_value != kNoClip) {
    return invalid_argument(kOp, "values_old", "an array beside clip_value", "none");
  }
  for (double coef : {p.policy_coef, p.value_coef, p.kl_coef, p.entropy_coef}) {
    if (!std::isfinite(coef)) return invalid_argument(kOp, "coef", "finite numbers", number(coef));
  }
  return {};
}

template <typename T>
Status loss_fault(const LossParams<T>& p, FaultWord word) {
  const Fault fault = fault_of(word);
  const bool of_input = fault.argument < kInputs;
  const Input<T> input = of_input ? inputs_of(p)[fault.argument] : Input<T>{"normalizer", p.token_normalizer};
  T got;
  if (Status status = cuda::copy(kOp, &got, input.x + fault.index, sizeof got, p.stream); !status.ok())
    return status;
  return of_input ? bad_entry(input.name, got, fault.index) : bad_normalizer(got, fault.index);
}

size_t loss_workspace_size(int64_t tokens, Device device) {
  if (device == Device::kCuda) return loss_blocks::workspace_bytes(tokens);
  return static_cast<size_t>(num_blocks(tokens)) * kBlockDoubles * sizeof(double);
}

void join_sums(const double* part, double* total) {
  for (int i = 0; i < kRatioMax; ++i) total[i] += part[i];
  total[kRatioMax] = std::max(total[kRatioMax], part[kRatioMax]);
  total[kAbsLogRatioMax] = std::max(total[kAbsLogRatioMax], part[kAbsLogRatioMax]);
  total[kRatioMin] = std::min(total[kRatioMin], part[kRatioMin]);
}

void metrics_from_sums(const double* s, double* metrics) {
  std::fill(metrics, metrics + kNumMetrics, 0.0);
  const double n = s[kTokens];
  if (!(n > 0.0)) return;
  // Var(R - V) / Var(R), without dividing rounding errors by each other when the returns are all equal.
  const double return_mean = s[kReturn] / n, residual_mean = s[kResidual] / n;
  const double return_var = s[kReturnSquared] / n - return_mean * return_mean;
  const double residual_var = std::max(0.0, s[kResidualSquared] / n - residual_mean * residual_mean);
  const bool flat = !(return_var > 1e-12 * s[kReturnSquared] / n);
  const double values[] = {n,
                           s[kRatio] / n,
                           s[kRatioMax],
                           s[kRatioMin],
                           s[kApproxKl] / n,
                           s[kAbsLogRatio] / n,
                           s[kAbsLogRatioMax],
                           s[kLogRatioClamped] / n,
                           (s[kClippedLow] + s[kClippedHigh]) / n,
                           s[kClippedLow] / n,
                           s[kClippedHigh] / n,
                           s[kDualClipped] / n,
                           s[kWeight] / n,
                           s[kWeightSquared] > 0.0 ? s[kWeight] * s[kWeight] / (n * s[kWeightSquared]) : 0.0,
                           s[kValueClipped] / n,
                           flat ? 0.0 : 1.0 - residual_var / return_var,
                           return_mean,
                           s[kResidualSquared] / n,
                           s[kRefKlK1] / n,
                           s[kRefKlK3] / n,
                           s[kEntropy] / n};
  static_assert(sizeof(values) / sizeof(values[0]) == kNumMetrics);
  std::copy(values, values + kNumMetrics, metrics);
}

// Whole numbers: they add up to the same in any order.
template <typename T>
int64_t count_trainable(const LossParams<T>& p, const TierKernels<T>& tier) {
  constexpr int64_t kPiece = 32 * kBlockTokens;
  if (p.tokens < kParallelTokens) return tier.count_block(p.trainable, 0, p.tokens);
  std::atomic<int64_t> count{0};
  parallel_for((p.tokens + kPiece - 1) / kPiece, [&](int64_t piece) {
    const int64_t begin = piece * kPiece;
    count += tier.count_block(p.trainable, begin, std::min(p.tokens, begin + kPiece));
  });
  return count;
}

template <typename T>
Status run_loss(const LossParams<T>& p, void* workspace, Device device) {
  if (Status status = check_loss(p); !status.ok()) return status;
  if (device == Device::kCuda) return loss_cuda(p, workspace);
  TierKernels<T> tier;
  if (Status status = tier_kernels(&tier); !status.ok()) return status;

  double n = p.normalizer;
  if (n == 0.0 && !p.token_normalizer) {  // one byte a token, before the pass: every gradient needs it
    n = static_cast<double>(std::max<int64_t>(1, count_trainable(p, tier)));
  }
  auto* results = static_cast<double*>(workspace);
  const int64_t blocks = num_blocks(p.tokens);
  const auto block = [&](int64_t i) {
    double* result = results + i * kBlockDoubles;
    const int64_t begin = i * kBlockTokens, end = std::min(p.tokens, begin + kBlockTokens);
    result[kNumSums] = tier.loss_block(p, 1.0 / n, begin, end, result) ? 0.0 : 1.0;
  };
  // A thread takes neighbours, whose arrays are asked for ahead.
  const int64_t lanes = p.tokens < kParallelTokens ? 1 : num_threads();
  run_in_lanes(blocks, lanes, [&](int64_t i, int64_t) { block(i); });

  std::fill(p.sums, p.sums + kNumSums, 0.0);
  p.sums[kRatioMax] = -kNoClip;
  p.sums[kRatioMin] = kNoClip;
  for (int64_t i = 0; i < blocks; ++i) {
    const double* result = results + i * kBlockDoubles;
    if (result[kNumSums] != 0.0) {
      if (Status status = find_bad_entry(p, i * kBlockTokens); !status.ok()) return status;
    }
    join_sums(result, p.sums);
  }
  return {};
}

template <typename T>
double total_loss(const LossParams<T>& p, const double* sums) {
  return p.policy_coef * sums[kPolicyLoss] + p.value_coef * sums[kValueLoss] + p.kl_coef * sums[kKlLoss] +
         p.entropy_coef * sums[kEntropyLoss];
}

template Status check_loss<float>(const LossParams<float>&);
template Status check_loss<double>(const LossParams<double>&);
template Status loss_fault<float>(const LossParams<float>&, FaultWord);
template Status loss_fault<double>(const LossParams<double>&, FaultWord);
template double total_loss<float>(const LossParams<float>&, const double*);
template double total_loss<double>(const LossParams<double>&, const double*);
template Status run_loss<float>(const LossParams<float>&, void*, Device);
template Status run_loss<double>(const LossParams<double>&, void*, Device);

}  // namespace earnest::ppo
