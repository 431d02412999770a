// SPDX-License-Identifier: Apache-2.0
// The oracles of this family: the formulas of the contracts, one token at a time, nothing shared with the
// fast ones.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/ppo/advantage.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/loss.h"

namespace earnest::ppo {

template <typename T>
void reference_gae(const GaeParams<T>& p) {
  for (int64_t i = 0; i < p.sequences; ++i) {
    double next_value = 0.0, next_advantage = 0.0;
    for (int64_t t = p.cu_seqlens[i + 1] - 1; t >= p.cu_seqlens[i]; --t) {
      p.advantages[t] = p.returns[t] = T(0);
      if (!p.trainable[t]) continue;
      const double value = p.values[t];
      const double delta = p.rewards[t] + p.gamma * next_value - value;
      const double advantage = delta + p.gamma * p.lam * next_advantage;
      p.advantages[t] = static_cast<T>(advantage);
      p.returns[t] = static_cast<T>(advantage + value);
      next_value = value;
      next_advantage = advantage;
    }
  }
}

namespace {

// Each adds its loss and metrics to the sums and returns the slope of its loss.
template <typename T>
double reference_policy(const LossParams<T>& p, int64_t t, double share) {
  double* s = p.sums;
  const double distance = static_cast<double>(p.logp[t]) - p.logp_old[t], advantage = p.advantages[t];
  const double w = p.weights ? p.weights[t] : 1.0;
  const double x = std::clamp(distance, -kLogRatioLimit, kLogRatioLimit), rho = std::exp(x);
  const double plain = -rho * advantage;
  const double cut = -std::clamp(rho, 1.0 - p.clip_low, 1.0 + p.clip_high) * advantage;
  double loss = std::max(plain, cut);
  bool flows = !(cut > plain) && x == distance;
  if (cut > plain) s[rho < 1.0 ? kClippedLow : kClippedHigh] += 1.0;
  if (advantage < 0.0 && loss > -p.dual_clip * advantage) {
    loss = -p.dual_clip * advantage;
    flows = false;
    s[kDualClipped] += 1.0;
  }
  s[kPolicyLoss] += share * w * loss;
  s[kTokens] += 1.0;
  s[kRatio] += rho;
  s[kApproxKl] += std::expm1(x) - x;
  s[kAbsLogRatio] += std::abs(distance);
  s[kLogRatioClamped] += x != distance;
  s[kWeight] += w;
  s[kWeightSquared] += w * w;
  s[kRatioMax] = std::max(s[kRatioMax], rho);
  s[kRatioMin] = std::min(s[kRatioMin], rho);
  s[kAbsLogRatioMax] = std::max(s[kAbsLogRatioMax], std::abs(distance));
  return flows ? share * w * plain : 0.0;
}

template <typename T>
double reference_value(const LossParams<T>& p, int64_t t, double share) {
  double* s = p.sums;
  const double value = p.values[t], target = p.returns[t], old = p.values_old ? p.values_old[t] : value;
  const double error = value - target;
  const double cut_error = std::clamp(value, old - p.clip_value, old + p.clip_value) - target;
  const bool clipped = cut_error * cut_error > error * error;
  s[kValueLoss] += share * 0.5 * std::max(error * error, cut_error * cut_error);
  s[kValueClipped] += clipped;
  s[kReturn] += target;
  s[kReturnSquared] += target * target;
  s[kResidual] += error;
  s[kResidualSquared] += error * error;
  return clipped ? 0.0 : share * error;
}

template <typename T>
double reference_kl(const LossParams<T>& p, int64_t t, double share) {
  const double k1 = static_cast<double>(p.logp[t]) - p.logp_ref[t];
  const double y = std::clamp(-k1, -kLogRatioLimit, kLogRatioLimit);
  const double k3 = std::expm1(y) - y, k3_slope = y == -k1 ? -std::expm1(y) : 0.0;
  const bool is_k1 = p.kl_estimator == KlEstimator::kK1, is_k2 = p.kl_estimator == KlEstimator::kK2;
  p.sums[kKlLoss] += share * (is_k1 ? k1 : is_k2 ? 0.5 * k1 * k1 : k3);
  p.sums[kRefKlK1] += k1;
  p.sums[kRefKlK3] += k3;
  return share * (is_k1 ? 1.0 : is_k2 ? k1 : k3_slope);
}

}  // namespace

template <typename T>
void reference_loss(const LossParams<T>& p) {
  std::fill(p.sums, p.sums + kNumSums, 0.0);
  p.sums[kRatioMax] = -kNoClip;
  p.sums[kRatioMin] = kNoClip;
  double n = p.normalizer;
  if (n == 0.0) n = std::max<double>(1.0, std::count(p.trainable, p.trainable + p.tokens, uint8_t{1}));
  for (int64_t t = 0; t < p.tokens; ++t) {
    double logp_slope = 0.0, value_slope = 0.0, share = 0.0;
    if (p.trainable[t]) {
      share = 1.0 / (p.token_normalizer ? static_cast<double>(p.token_normalizer[t]) : n);
      logp_slope = p.policy_coef * reference_policy(p, t, share);
      if (p.logp_ref) logp_slope += p.kl_coef * reference_kl(p, t, share);
      if (p.values) value_slope = p.value_coef * reference_value(p, t, share);
      if (p.entropy) p.sums[kEntropyLoss] -= share * p.entropy[t];
      if (p.entropy) p.sums[kEntropy] += p.entropy[t];
    }
    if (p.grad_logp) p.grad_logp[t] = static_cast<T>(logp_slope);
    if (p.grad_values) p.grad_values[t] = static_cast<T>(value_slope);
    if (p.grad_entropy) p.grad_entropy[t] = static_cast<T>(-p.entropy_coef * share);
  }
}

template <typename T>
Moments reference_moments(const MomentsParams<T>& p) {
  Moments m;
  for (int64_t t = 0; t < p.tokens; ++t) {
    if (p.trainable[t]) m.count += 1.0, m.mean += p.x[t];
  }
  m.mean = m.count > 0.0 ? m.mean / m.count : 0.0;
  for (int64_t t = 0; t < p.tokens; ++t) {
    if (p.trainable[t]) m.m2 += (p.x[t] - m.mean) * (p.x[t] - m.mean);
  }
  return m;
}

template <typename T>
void reference_whiten(const WhitenParams<T>& p) {
  const double variance = p.moments.count > 0.0 ? p.moments.m2 / p.moments.count : 0.0;
  const double divisor = std::sqrt(variance) < p.min_std ? 1.0 : std::sqrt(variance + p.eps);
  for (int64_t t = 0; t < p.tokens; ++t) {
    p.out[t] = p.trainable[t] ? static_cast<T>((p.x[t] - p.moments.mean) / divisor) : T(0);
  }
}

template <typename T>
void reference_group_advantage(const GroupParams<T>& p) {
  const auto counts = [&](int64_t i) { return !p.valid || p.valid[i]; };
  for (int64_t i = 0; i < p.samples; ++i) {
    p.advantages[i] = T(0);
    if (!counts(i)) continue;
    std::vector<double> all, others;
    for (int64_t j = 0; j < p.samples; ++j) {
      if (!counts(j) || p.groups[j] != p.groups[i]) continue;
      all.push_back(p.scores[j]);
      if (j != i) others.push_back(p.scores[j]);
    }
    if (others.empty()) continue;
    const auto mean_of = [](const std::vector<double>& x) {
      double total = 0.0;
      for (double value : x) total += value;
      return total / static_cast<double>(x.size());
    };
    double advantage = p.scores[i] - mean_of(p.baseline == GroupBaseline::kMean ? all : others);
    double variance = 0.0;
    for (double value : all) variance += (value - mean_of(all)) * (value - mean_of(all));
    variance /= static_cast<double>(all.size() - 1);
    if (p.normalize_std && std::sqrt(variance) >= p.min_std) advantage /= std::sqrt(variance + p.eps);
    p.advantages[i] = static_cast<T>(advantage);
  }
}

#define EARNEST_INSTANTIATE(T)                                 \
  template void reference_gae(const GaeParams<T>&);            \
  template void reference_loss(const LossParams<T>&);          \
  template Moments reference_moments(const MomentsParams<T>&); \
  template void reference_whiten(const WhitenParams<T>&);      \
  template void reference_group_advantage(const GroupParams<T>&);
EARNEST_INSTANTIATE(float)
EARNEST_INSTANTIATE(double)
#undef EARNEST_INSTANTIATE

}  // namespace earnest::ppo
