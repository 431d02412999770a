// SPDX-License-Identifier: Apache-2.0
// The PPO losses of one block of tokens. Included once per tier (lanes.h). Each loss is a loop of its own
// over the block: the block's arrays stay in cache, so memory is still read once, and few sums are alive at a
// time.
#pragma once

#include "kernels/ppo/lanes.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

template <typename T>
struct Block {
  const LossParams<T>& params;
  double inverse_n;
  int64_t begin, end;
  double* sums;
  Mask bad{};

  // m / N of tokens [t, t + n)
  Vec share(Mask mask, int64_t t, int n) {
    if (params.token_normalizer == nullptr) return keep(mask, splat(inverse_n));
    const Vec normalizer = keep(mask, load(params.token_normalizer + t, n));
    bad |= ~finite(normalizer) | (mask & (normalizer <= splat(0.0)));
    return keep(mask, splat(1.0) / normalizer);
  }

  // Entries of x at trainable tokens; the others read 0.
  Vec read(const T* x, Mask mask, int64_t t, int n) {
    const Vec loaded = keep(mask, load(x + t, n));
    bad |= ~finite(loaded);
    return loaded;
  }
};

inline Vec one_where(Mask mask) { return keep(mask, splat(1.0)); }

template <typename T>
void policy_terms(Block<T>& block) {
  const LossParams<T>& p = block.params;
  const Vec limit = splat(kLogRatioLimit), low = splat(1.0 - p.clip_low), high = splat(1.0 + p.clip_high);
  const Vec dual = splat(p.dual_clip), zero = splat(0.0);
  Vec loss{}, tokens{}, ratio{}, kl{}, distance{}, clamped{}, clip_low{}, clip_high{}, dual_clip{}, weight{},
      weight2{};
  Vec ratio_max = splat(-kNoClip), ratio_min = splat(kNoClip), distance_max{};
  for_each_vector(block.begin, block.end, [&](int64_t t, auto n) {
    const Mask mask = load_mask(p.trainable + t, n);
    const Vec share = block.share(mask, t, n);
    const Vec log_ratio = block.read(p.logp, mask, t, n) - block.read(p.logp_old, mask, t, n);
    const Vec advantage = block.read(p.advantages, mask, t, n);
    const Vec w = p.weights ? block.read(p.weights, mask, t, n) : one_where(mask);
    const Exp rho = exponential(clamp(log_ratio, -limit, limit));
    const Vec plain = -rho.value * advantage, cut = -clamp(rho.value, low, high) * advantage;
    const Mask is_clipped = cut > plain, outside = absolute(log_ratio) > limit;
    Vec worst = select(is_clipped, cut, plain);
    const Vec bound = -dual * advantage;
    const Mask is_dual = (advantage < zero) & (worst > bound);
    worst = select(is_dual, bound, worst);
    loss += share * w * worst;
    store(p.grad_policy + t, keep(~(is_clipped | is_dual | outside), share * w * plain), n);

    tokens += one_where(mask);
    ratio += keep(mask, rho.value);
    kl += rho.excess;
    distance += absolute(log_ratio);
    clamped += one_where(outside);
    clip_low += one_where(is_clipped & (rho.value < low));
    clip_high += one_where(is_clipped & (rho.value > high));
    dual_clip += one_where(is_dual);
    weight += w;
    weight2 += w * w;
    ratio_max = larger(ratio_max, select(mask, rho.value, ratio_max));
    ratio_min = smaller(ratio_min, select(mask, rho.value, ratio_min));
    distance_max = larger(distance_max, absolute(log_ratio));
  });
  double* sums = block.sums;
  sums[kPolicyLoss] = sum(loss);
  sums[kTokens] = sum(tokens);
  sums[kRatio] = sum(ratio);
  sums[kApproxKl] = sum(kl);
  sums[kAbsLogRatio] = sum(distance);
  sums[kLogRatioClamped] = sum(clamped);
  sums[kClippedLow] = sum(clip_low);
  sums[kClippedHigh] = sum(clip_high);
  sums[kDualClipped] = sum(dual_clip);
  sums[kWeight] = sum(weight);
  sums[kWeightSquared] = sum(weight2);
  sums[kRatioMax] = maximum(ratio_max);
  sums[kRatioMin] = -maximum(-ratio_min);
  sums[kAbsLogRatioMax] = maximum(distance_max);
}

template <typename T>
void value_terms(Block<T>& block) {
  const LossParams<T>& p = block.params;
  const Vec half = splat(0.5), reach = splat(p.clip_value);
  Vec loss{}, clipped{}, returns{}, returns2{}, residuals{}, residuals2{};
  for_each_vector(block.begin, block.end, [&](int64_t t, auto n) {
    const Mask mask = load_mask(p.trainable + t, n);
    const Vec share = block.share(mask, t, n);
    const Vec value = block.read(p.values, mask, t, n), target = block.read(p.returns, mask, t, n);
    const Vec old = p.values_old ? block.read(p.values_old, mask, t, n) : value;
    const Vec error = value - target, cut_error = clamp(value, old - reach, old + reach) - target;
    const Mask is_clipped = cut_error * cut_error > error * error;
    const Vec worst = select(is_clipped, cut_error, error);
    loss += share * half * worst * worst;
    store(p.grad_value + t, keep(~is_clipped, share * error), n);

    clipped += one_where(is_clipped);
    returns += target;
    returns2 += target * target;
    residuals += error;
    residuals2 += error * error;
  });
  double* sums = block.sums;
  sums[kValueLoss] = sum(loss);
  sums[kValueClipped] = sum(clipped);
  sums[kReturn] = sum(returns);
  sums[kReturnSquared] = sum(returns2);
  sums[kResidual] = sum(residuals);
  sums[kResidualSquared] = sum(residuals2);
}

template <typename T>
void kl_terms(Block<T>& block) {
  const LossParams<T>& p = block.params;
  const Vec limit = splat(kLogRatioLimit), half = splat(0.5), one = splat(1.0);
  Vec loss{}, k1_sum{}, k3_sum{};
  for_each_vector(block.begin, block.end, [&](int64_t t, auto n) {
    const Mask mask = load_mask(p.trainable + t, n);
    const Vec share = block.share(mask, t, n);
    const Vec k1 = block.read(p.logp, mask, t, n) - block.read(p.logp_ref, mask, t, n);
    const Exp inverse = exponential(clamp(-k1, -limit, limit));
    Vec k = k1, gradient = one;
    if (p.kl_estimator == KlEstimator::kK2) {
      k = half * k1 * k1;
      gradient = k1;
    } else if (p.kl_estimator == KlEstimator::kK3) {
      k = inverse.excess;
      gradient =
          keep(absolute(k1) <= limit, k1 - inverse.excess);  // 1 - exp(-k1), without cancellation near 0
    }
    loss += share * k;
    if (p.grad_kl) store(p.grad_kl + t, share * gradient, n);
    k1_sum += k1;
    k3_sum += inverse.excess;
  });
  block.sums[kKlLoss] = sum(loss);
  block.sums[kRefKlK1] = sum(k1_sum);
  block.sums[kRefKlK3] = sum(k3_sum);
}

template <typename T>
void entropy_terms(Block<T>& block) {
  const LossParams<T>& p = block.params;
  Vec loss{}, total{};
  for_each_vector(block.begin, block.end, [&](int64_t t, auto n) {
    const Mask mask = load_mask(p.trainable + t, n);
    const Vec share = block.share(mask, t, n), entropy = block.read(p.entropy, mask, t, n);
    loss -= share * entropy;
    total += entropy;
    if (p.grad_entropy) store(p.grad_entropy + t, splat(0.0) - share, n);  // 0, not -0, where masked
  });
  block.sums[kEntropyLoss] = sum(loss);
  block.sums[kEntropy] = sum(total);
}

template <typename T>
bool loss_block(const LossParams<T>& params, double inverse_n, int64_t begin, int64_t end, double* sums) {
  for (int i = 0; i < kNumSums; ++i) sums[i] = 0.0;
  Block<T> block{params, inverse_n, begin, end, sums};
  policy_terms(block);
  if (params.values) value_terms(block);
  if (params.logp_ref) kl_terms(block);
  if (params.entropy) entropy_terms(block);
  return !any(block.bad);
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
