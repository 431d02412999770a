// SPDX-License-Identifier: Apache-2.0
// The PPO losses of a batch of tokens, the gradients of their weighted sum and their metrics, in one pass
// over memory. With m = trainable, N_t = normalizer (or token_normalizer[t]), x = clamp(logp - logp_old, -20,
// 20), rho = exp(x):
//
//   policy   sum m/N_t w_t min(max(-rho A, -clip(rho, 1 - clip_low, 1 + clip_high) A), dual), with
//            dual = -dual_clip A where A < 0, none elsewhere; w = weights (constants, e.g. truncated
//            importance sampling), default 1
//   value    sum m/N_t max((V - R)^2, (clip(V, V_old - clip_value, V_old + clip_value) - R)^2) / 2
//   kl       sum m/N_t k    k1 = logp - logp_ref,  k2 = k1^2 / 2,
//            k3 = exp(y) - 1 - y with y = clamp(-k1, -20, 20)
//   entropy  sum m/N_t (-H)
//   loss     policy_coef policy + value_coef value + kl_coef kl + entropy_coef entropy
//
// Conventions at ties, all tested: the gradient flows through the unclipped branch unless the clipped one is
// strictly larger, so exactly at a clip edge it flows; it flows unless the dual bound is strictly exceeded;
// the clamp of the log-ratio passes the gradient on the closed interval [-20, 20]. A clip fraction counts
// tokens whose gradient is cut, not tokens whose ratio is outside. Masked entries are never used, whatever
// they hold; an entry that is not finite at a trainable token is an error that names it.
//
// A token's terms are computed in the type of the arrays (edges rounded to it, as autograd would); sums over
// tokens are in double for both types.
//
// Device::kCuda: every array, sums and total among them, is the device's. The call puts work on the stream
// and returns; what the CPU would refuse in an array goes into the fault word, and loss_fault says it in the
// same words. Gradients and sums are the same bits at every run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::ppo {

enum class KlEstimator { kK1, kK2, kK3 };

// What a pass leaves behind besides gradients. Sums of parts of a batch add up to the sums of the batch
// (kRatioMax and kAbsLogRatioMax by maximum, kRatioMin by minimum), which is how micro-batches and ranks are
// joined exactly.
enum Sum {
  kPolicyLoss,
  kValueLoss,
  kKlLoss,
  kEntropyLoss,  // already divided by N_t
  kTokens,
  kRatio,
  kApproxKl,
  kAbsLogRatio,
  kLogRatioClamped,
  kClippedLow,
  kClippedHigh,
  kDualClipped,
  kWeight,
  kWeightSquared,
  kValueClipped,
  kReturn,
  kReturnSquared,
  kResidual,
  kResidualSquared,
  kRefKlK1,
  kRefKlK3,
  kEntropy,
  kRatioMax,
  kAbsLogRatioMax,
  kRatioMin,
  kNumSums
};

constexpr double kNoClip = std::numeric_limits<double>::infinity();
constexpr double kLogRatioLimit = 20.0;

template <typename T>  // float or double
struct LossParams {
  // Inputs, each [tokens]. May be null: values (then no value loss), values_old if clip_value is kNoClip,
  // logp_ref, entropy, weights, token_normalizer.
  const T* logp = nullptr;
  const T* logp_old = nullptr;
  const T* advantages = nullptr;
  const T* values = nullptr;
  const T* values_old = nullptr;
  const T* returns = nullptr;
  const T* logp_ref = nullptr;
  const T* entropy = nullptr;
  const T* weights = nullptr;
  const T* token_normalizer = nullptr;  // > 0; replaces normalizer
  const uint8_t* trainable = nullptr;
  int64_t tokens = 0;

  double normalizer = 0.0;      // > 0, or 0 for the number of trainable tokens (1 if there are none)
  double clip_low = 0.2;        // [0, 1)
  double clip_high = 0.2;       // >= 0
  double clip_value = kNoClip;  // > 0
  double dual_clip = kNoClip;   // > 1
  KlEstimator kl_estimator = KlEstimator::kK2;
  double policy_coef = 1.0;  // finite
  double value_coef = 1.0;
  double kl_coef = 0.0;
  double entropy_coef = 0.0;

  // Outputs, each [tokens], 0 where masked; null for those that are not wanted.
  T* grad_logp = nullptr;     // d loss / d logp
  T* grad_values = nullptr;   // d loss / d values
  T* grad_entropy = nullptr;  // d loss / d entropy
  double* sums = nullptr;     // [kNumSums]

  // For Device::kCuda:
  T* total = nullptr;  // the weighted sum of the four losses (total_loss), or null
  void* stream = nullptr;
  FaultWord* fault = nullptr;
};

// Bytes of scratch that run_loss needs, aligned as a double.
size_t loss_workspace_size(int64_t tokens, Device device = Device::kCpu);

template <typename T>
Status run_loss(const LossParams<T>& params, void* workspace, Device device = Device::kCpu);

// What a fault word that is not kNoFault means. Reads the entry from the device; waits.
template <typename T>
Status loss_fault(const LossParams<T>& params, FaultWord word);

// What run_loss refuses before it reads any array but for its being there.
template <typename T>
Status check_loss(const LossParams<T>& params);

// The weighted sum of the four losses.
template <typename T>
double total_loss(const LossParams<T>& params, const double* sums);

// The oracle: the formulas above, one token at a time. Takes checked parameters.
template <typename T>
void reference_loss(const LossParams<T>& params);

// What is logged, from sums (of one call, or joined over many). Means are over trainable tokens; 0 where
// there are none.
constexpr const char* kMetricNames[] = {"tokens",
                                        "ratio_mean",
                                        "ratio_max",
                                        "ratio_min",
                                        "approx_kl",
                                        "log_ratio_abs_mean",
                                        "log_ratio_abs_max",
                                        "log_ratio_clamped_fraction",
                                        "clip_fraction",
                                        "clip_fraction_low",
                                        "clip_fraction_high",
                                        "dual_clip_fraction",
                                        "weight_mean",
                                        "effective_sample_fraction",
                                        "value_clip_fraction",
                                        "explained_variance",
                                        "return_mean",
                                        "value_error_mean",
                                        "ref_kl_k1",
                                        "ref_kl_k3",
                                        "entropy_mean"};
constexpr int kNumMetrics = sizeof(kMetricNames) / sizeof(kMetricNames[0]);

// Joins sums of another part of the batch into total.
void join_sums(const double* part, double* total);
void metrics_from_sums(const double* sums, double* metrics);

}  // namespace earnest::ppo
