// SPDX-License-Identifier: Apache-2.0
// The PPO losses of one block of tokens, in the precision of the arrays; sums are in double. Included once
// per tier (lanes.h). Each loss is a loop of its own over the block: the block's arrays stay in cache, so
// memory is still read once, and few sums are alive at a time.
//
// Entries are not inspected one by one: what is not finite makes a sum so, and a block with such a sum is
// searched afterwards. Where a sum could not tell (normalisers, old values), the loops look themselves.
#pragma once

#include <array>
#include <cmath>

#include "kernels/ppo/exponential.h"
#include "kernels/ppo/masks.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

// kPerToken: every token has a normaliser of its own. Otherwise sums are divided by it at the end.
template <typename T, bool kPerToken>
struct Block {
  const LossParams<T>& params;
  double inverse_n;
  int64_t begin, end;
  double* sums;
  Mask<T> suspect{};

  // Entries of x at trainable tokens; the others read 0.
  Vec<T> read(const T* x, Mask<T> mask, int64_t t, int n) const { return keep(mask, load<T>(x + t, n)); }

  // What a term of the tokens' losses counts in their sum, before `total`.
  Vec<T> share(Mask<T> mask, int64_t t, int n) const {
    if constexpr (!kPerToken) return splat(T(1));
    return keep(mask, splat(T(1)) / load<T>(params.token_normalizer + t, n));
  }
  // The same for their gradients, times the weight of the loss.
  Vec<T> weight(double coef) const { return splat(static_cast<T>(kPerToken ? coef : coef * inverse_n)); }
  static Vec<T> slope(Vec<T> weight, Vec<T> share) { return kPerToken ? weight * share : weight; }
  double total(const Total<T>& loss) const { return loss.value() * (kPerToken ? 1.0 : inverse_n); }
};

// Arrays that a later loop reads or writes, asked for while this one computes: memory would rest meanwhile.
template <typename T>
class Later {
 public:
  Later(std::array<const T*, 6> arrays, const T* present) : arrays_(arrays) {
    for (const T*& array : arrays_)
      array = array ? array : present;  // what this loop has already costs nothing
  }
  void fetch(int64_t t) const {
    for (const T* array : arrays_) __builtin_prefetch(array + t);
  }

 private:
  std::array<const T*, 6> arrays_;
};

template <typename T, bool kPerToken>
void policy_terms(Block<T, kPerToken>& block) {
  const LossParams<T>& p = block.params;
  const Vec<T> limit = splat(T(kLogRatioLimit)), zero{};
  const Vec<T> low = splat(T(1.0 - p.clip_low)), high = splat(T(1.0 + p.clip_high)),
               dual = splat(T(p.dual_clip));
  const bool has_dual = p.dual_clip != kNoClip;
  Total<T> loss, ratio, kl, distances, weight, weight2;
  Counter<T> tokens, clamped, clipped, clipped_high, dual_clipped;
  Vec<T> ratio_max = splat(T(-kNoClip)), ratio_min = splat(T(kNoClip)), distance_max{};
  const Vec<T> of_gradient = block.weight(p.policy_coef);
  const bool has_values = p.values != nullptr;
  const Later<T> later(
      {p.values, has_values ? p.values_old : nullptr, has_values ? p.returns : nullptr,
       has_values ? p.grad_values : nullptr, p.entropy, p.entropy ? p.grad_entropy : nullptr},
      p.logp);
  for_each_vector<T>(block.begin, block.end, [&](int64_t t, auto n) {
    later.fetch(t);
    const Mask<T> mask = load_mask<T>(p.trainable + t, n);
    const Vec<T> share = block.share(mask, t, n);
    if (kPerToken)
      block.suspect |= mask & ~(greater(share, zero) & greater(load<T>(p.token_normalizer + t, n), zero));
    const Vec<T> log_ratio = keep(mask, load<T>(p.logp + t, n) - load<T>(p.logp_old + t, n));
    const Vec<T> cost = -block.read(p.advantages, mask, t, n), distance = absolute(log_ratio);
    const Exp<Vec<T>> rho = exponential<T>(clamp(log_ratio, -limit, limit));
    Vec<T> plain = rho.value * cost;
    const Vec<T> cut = clamp(rho.value, low, high) * cost;
    const Mask<T> is_clipped = greater(cut, plain), outside = greater(distance, limit);
    Vec<T> worst = select(is_clipped, cut, plain);
    Mask<T> flows = mask & ~(is_clipped | outside);
    if (has_dual) {
      const Mask<T> is_dual = greater(cost, zero) & greater(worst, dual * cost);
      worst = select(is_dual, dual * cost, worst);
      flows &= ~is_dual;
      dual_clipped.add(is_dual);
    }
    if (p.weights) {
      const Vec<T> w = block.read(p.weights, mask, t, n);
      worst *= w;
      plain *= w;
      weight.add(w);
      weight2.add_squares(w);
    }
    loss.add(kPerToken ? share * worst : worst);
    if (p.grad_logp) store<T>(p.grad_logp + t, keep(flows, block.slope(of_gradient, share) * plain), n);

    tokens.add(mask);
    ratio.add(keep(mask, rho.value));
    kl.add(rho.excess);
    distances.add(distance);
    clamped.add(outside);
    clipped.add(is_clipped);
    clipped_high.add(is_clipped & greater(zero, cost));
    ratio_max = larger(ratio_max, select(mask, rho.value, ratio_max));
    ratio_min = smaller(ratio_min, select(mask, rho.value, ratio_min));
    distance_max = larger(distance_max, distance);
  });
  double* sums = block.sums;
  sums[kPolicyLoss] = block.total(loss);
  sums[kTokens] = tokens.value();
  sums[kRatio] = ratio.value();
  sums[kApproxKl] = kl.value();
  sums[kAbsLogRatio] = distances.value();
  sums[kLogRatioClamped] = clamped.value();
  sums[kClippedLow] = clipped.value() - clipped_high.value();
  sums[kClippedHigh] = clipped_high.value();
  sums[kDualClipped] = dual_clipped.value();
  sums[kWeight] = p.weights ? weight.value() : tokens.value();
  sums[kWeightSquared] = p.weights ? weight2.value() : tokens.value();
  sums[kRatioMax] = maximum(ratio_max);
  sums[kRatioMin] = -maximum(-ratio_min);
  sums[kAbsLogRatioMax] = maximum(distance_max);
}

template <typename T, bool kPerToken>
void value_terms(Block<T, kPerToken>& block) {
  const LossParams<T>& p = block.params;
  const Vec<T> reach = splat(T(p.clip_value));
  const T* values_old = p.clip_value != kNoClip ? p.values_old : nullptr;
  Total<T> loss, returns, returns2, residuals, residuals2;
  Counter<T> clipped;
  const Vec<T> of_gradient = block.weight(p.value_coef);
  // The next block is most likely ours too.
  const int64_t size = block.end - block.begin, next = p.tokens - block.end >= size ? size : 0;
  const Later<T> later({p.logp, p.logp_old, p.advantages, p.grad_logp}, p.values);
  for_each_vector<T>(block.begin, block.end, [&](int64_t t, auto n) {
    later.fetch(t + next);
    const Mask<T> mask = load_mask<T>(p.trainable + t, n);
    const Vec<T> share = block.share(mask, t, n);
    const Vec<T> value = block.read(p.values, mask, t, n), target = block.read(p.returns, mask, t, n);
    const Vec<T> error = value - target;
    Vec<T> worst = error;
    Mask<T> flows = mask;
    if (values_old) {
      const Vec<T> old = block.read(values_old, mask, t, n);
      const Vec<T> cut_error = clamp(value, old - reach, old + reach) - target;
      const Mask<T> is_clipped = greater(absolute(cut_error), absolute(error));
      worst = select(is_clipped, cut_error, error);
      flows &= ~is_clipped;
      clipped.add(is_clipped);
      block.suspect |= ~equal(old - old, Vec<T>{});
    }
    if (p.grad_values) store<T>(p.grad_values + t, keep(flows, block.slope(of_gradient, share) * error), n);

    typename Total<T>::Wide wide;
    if constexpr (kPerToken) {
      loss.add(share * (worst * worst));
    } else {
      loss.add_squares(worst);
    }
    Total<T>::widen(target, wide);
    returns.add(wide);
    returns2.add_squares(wide);
    Total<T>::widen(error, wide);
    residuals.add(wide);
    residuals2.add_squares(wide);
  });
  double* sums = block.sums;
  sums[kValueLoss] = 0.5 * block.total(loss);
  sums[kValueClipped] = clipped.value();
  sums[kReturn] = returns.value();
  sums[kReturnSquared] = returns2.value();
  sums[kResidual] = residuals.value();
  sums[kResidualSquared] = residuals2.value();
}

template <typename T, bool kPerToken>
void kl_terms(Block<T, kPerToken>& block) {
  const LossParams<T>& p = block.params;
  const Vec<T> limit = splat(T(kLogRatioLimit)), half = splat(T(0.5)), one = splat(T(1));
  Total<T> loss, k1_sum, k3_sum;
  const Vec<T> of_gradient = block.weight(p.kl_coef);
  for_each_vector<T>(block.begin, block.end, [&](int64_t t, auto n) {
    const Mask<T> mask = load_mask<T>(p.trainable + t, n);
    const Vec<T> share = block.share(mask, t, n);
    const Vec<T> k1 = keep(mask, load<T>(p.logp + t, n) - load<T>(p.logp_ref + t, n));
    const Exp<Vec<T>> inverse = exponential<T>(clamp(-k1, -limit, limit));
    Vec<T> k = k1, gradient = one;
    if (p.kl_estimator == KlEstimator::kK2) {
      k = half * k1 * k1;
      gradient = k1;
    } else if (p.kl_estimator == KlEstimator::kK3) {
      k = inverse.excess;
      gradient = keep(~greater(absolute(k1), limit), k1 - inverse.excess);  // 1 - exp(-k1), small where k1 is
    }
    loss.add(kPerToken ? share * k : k);
    if (p.grad_logp && p.kl_coef != 0.0) {
      const Vec<T> slope = keep(mask, block.slope(of_gradient, share) * gradient);
      store<T>(p.grad_logp + t, load<T>(p.grad_logp + t, n) + slope, n);
    }
    k1_sum.add(k1);
    k3_sum.add(inverse.excess);
  });
  block.sums[kKlLoss] = block.total(loss);
  block.sums[kRefKlK1] = k1_sum.value();
  block.sums[kRefKlK3] = k3_sum.value();
}

template <typename T, bool kPerToken>
void entropy_terms(Block<T, kPerToken>& block) {
  const LossParams<T>& p = block.params;
  Total<T> shared, all;
  const Vec<T> of_gradient = block.weight(-p.entropy_coef);
  for_each_vector<T>(block.begin, block.end, [&](int64_t t, auto n) {
    const Mask<T> mask = load_mask<T>(p.trainable + t, n);
    const Vec<T> share = block.share(mask, t, n), entropy = block.read(p.entropy, mask, t, n);
    if (kPerToken) shared.add(share * entropy);
    all.add(entropy);
    if (p.grad_entropy) store<T>(p.grad_entropy + t, keep(mask, block.slope(of_gradient, share)), n);
  });
  block.sums[kEntropyLoss] = -block.total(kPerToken ? shared : all);
  block.sums[kEntropy] = all.value();
}

template <typename T, bool kPerToken>
bool block_terms(const LossParams<T>& params, double inverse_n, int64_t begin, int64_t end, double* sums) {
  for (int i = 0; i < kNumSums; ++i) sums[i] = 0.0;
  Block<T, kPerToken> block{params, inverse_n, begin, end, sums};
  policy_terms(block);
  if (params.values) value_terms(block);
  if (params.logp_ref) kl_terms(block);
  if (params.entropy) entropy_terms(block);
  bool good = !any(block.suspect);
  for (int i = 0; i < kRatioMax; ++i) good &= std::isfinite(sums[i]);
  return good;
}

template <typename T>
bool loss_block(const LossParams<T>& params, double inverse_n, int64_t begin, int64_t end, double* sums) {
  return params.token_normalizer ? block_terms<T, true>(params, inverse_n, begin, end, sums)
                                 : block_terms<T, false>(params, inverse_n, begin, end, sums);
}

int64_t count_block(const uint8_t* trainable, int64_t begin, int64_t end) {
  int64_t count = 0;
  int64_t t = begin;
  // Bytes are counted in bytes for as long as those cannot overflow.
  typedef typename VectorOf<uint8_t, kBytes>::type V;
  typedef typename VectorOf<uint64_t, kBytes / 8>::type W;
  while (end - t >= kBytes) {
    V counts{};
    for (int i = 0; i < 255 && end - t >= kBytes; ++i, t += kBytes) {
      V flags;
      std::memcpy(&flags, trainable + t, sizeof(flags));
      counts -= reinterpret_cast<V>(flags != 0);
    }
    const W words = reinterpret_cast<W>(counts), even = words & 0x00ff00ff00ff00ffu;
    const W pairs = even + ((words >> 8) & 0x00ff00ff00ff00ffu);
    count += static_cast<int64_t>(sum((pairs * 0x0001000100010001u) >> 48));
  }
  for (; t < end; ++t) count += trainable[t] != 0;
  return count;
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
