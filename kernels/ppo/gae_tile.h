// SPDX-License-Identifier: Apache-2.0
// Generalised advantage estimation of one sequence, a vector of tokens at a time. Included once per tier
// (lanes.h).
//
// With u_t = V_t + lam A_t of the next trainable token, both recurrences become one:
//   A_t = r_t - V_t + gamma u_next      u_t = b_t + c u_next,   b_t = (1 - lam) V_t + lam r_t,  c = gamma lam
// The trainable tokens of a vector move together at its front. If those are n, and u_n belongs to the vector
// after,
//   u_i = c^-i (sum of b_j c^j over j >= i, + c^n u_n):
// every term has a weight of its own, and lanes meet in a plain sum from the end. Only one multiply-add per
// vector waits for the vector after it, and that one is in double: rounding to float is never carried on.
#pragma once

#include "kernels/ppo/lanes.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

// Below this, c^-k would leave the range of float; such a sum is short, and one token at a time will do.
constexpr double kSmallestScan = 0.1;

template <int kStep, typename V>
inline V sum_from_end(V x) {
  if constexpr (kStep < kLanesOf<V>) return sum_from_end<kStep * 2>(x + from_later<kStep>(x, V{}));
  return x;
}

#if EARNEST_PPO_BYTES > 16
template <typename T, bool kCumulative>
struct GaeScan {
  const GaeParams<T> params;
  const Vec<T> zero{}, gamma = splat(T(params.gamma));
  Vec<T> of_value{}, of_reward{};  // (1 - lam) c^i and lam c^i
  Vec<T> inverse{};                // c^-i
  double powers[kLanes<T> + 1]{};  // c^i
  double carry = 0.0;              // u of the first token after the vector
  Vec<T> poison{};                 // 0, or not a number once an entry was not finite
  Mask<T> lost{};                  // rewards that would be lost

  explicit GaeScan(const GaeParams<T>& p) : params(p) {
    powers[0] = 1.0;
    for (int i = 0; i < kLanes<T>; ++i) {
      of_value[i] = static_cast<T>((1.0 - p.lam) * powers[i]);
      of_reward[i] = static_cast<T>(p.lam * powers[i]);
      inverse[i] = static_cast<T>(1.0 / powers[i]);
      powers[i + 1] = powers[i] * (p.gamma * p.lam);
    }
  }

  template <typename Lanes>
  void step(int64_t t, Lanes n) {
    const Flags flags = load_flags<T>(params.trainable + t, n);
    const Vec<T> rewards = load<T>(params.rewards + t, n), values = load<T>(params.values + t, n);
    if (params.refuse_masked_rewards) lost |= ~(mask_of<T>(flags) | (rewards == zero));
    if constexpr (kCumulative) {
      cumulate(t, n, mask_of<T>(flags), rewards, values);
    } else {
      const uint32_t chosen = bits_of(flags);
      const Vec<T> reward = compressed<T>(chosen, rewards), value = compressed<T>(chosen, values);
      const Vec<T> surplus = reward - value;
      poison += surplus * zero;
      const Vec<T> total = sum_from_end<1>(of_value * value + of_reward * reward);
      const double faded = carry * powers[__builtin_popcount(chosen)];
      const Vec<T> u = (total + splat(static_cast<T>(faded))) * inverse;
      const Vec<T> u_next = from_later<1>(u, splat(static_cast<T>(carry)));
      const Vec<T> advantage = surplus + gamma * u_next;
      carry = faded + total[0];
      store<T>(params.advantages + t, expanded<T>(chosen, advantage), n);
      store<T>(params.returns + t, expanded<T>(chosen, advantage + value), n);
    }
  }

  // gamma = lam = 1: b = r, c = 1, and the return is the reverse cumulative reward itself; nothing has to
  // move.
  template <typename Lanes>
  void cumulate(int64_t t, Lanes n, Mask<T> mask, Vec<T> rewards, Vec<T> values) {
    const Vec<T> reward = keep(mask, rewards), value = keep(mask, values);
    poison += (reward - value) * zero;
    const Vec<T> total = sum_from_end<1>(reward);
    const Vec<T> u = total + splat(static_cast<T>(carry));
    carry += total[0];
    store<T>(params.advantages + t, keep(mask, u - value), n);
    store<T>(params.returns + t, keep(mask, u), n);
  }

  bool run(int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = params.cu_seqlens[i];
      int64_t t = params.cu_seqlens[i + 1];
      carry = 0.0;
      while (t - begin >= kLanes<T>) step(t -= kLanes<T>, AllLanes<T>{});
      if (t > begin) step(begin, static_cast<int>(t - begin));
    }
    return !any(~(poison == zero) | lost);
  }
};
#endif

template <typename T>
bool gae_serial(const GaeParams<T>& params, int64_t begin, int64_t end) {
  const double gamma = params.gamma, lam = params.lam;
  double u = 0.0, poison = 0.0;
  bool lost = false;
  for (int64_t t = end - 1; t >= begin; --t) {
    const bool chosen = params.trainable[t] != 0;
    const double reward = chosen ? params.rewards[t] : T(0), value = chosen ? params.values[t] : T(0);
    const double surplus = reward - value, advantage = surplus + gamma * u;
    poison += surplus * 0.0;
    lost |= !chosen & !(params.rewards[t] == T(0));
    params.advantages[t] = static_cast<T>(chosen ? advantage : 0.0);
    params.returns[t] = static_cast<T>(chosen ? advantage + value : 0.0);
    const double next = ((1.0 - lam) * value + lam * reward) + gamma * lam * u;
    u = chosen ? next : u;
  }
  return poison == 0.0 && !(lost && params.refuse_masked_rewards);
}

template <typename T>
bool gae_sequences(const GaeParams<T>& params, int64_t first, int64_t last) {
#if EARNEST_PPO_BYTES > 16  // vectors of 16 bytes have no shuffle by index on every machine
  if (params.gamma * params.lam >= kSmallestScan) {
    if (params.gamma * params.lam == 1.0) return GaeScan<T, true>(params).run(first, last);
    return GaeScan<T, false>(params).run(first, last);
  }
#endif
  bool good = true;
  for (int64_t i = first; i < last; ++i)
    good &= gae_serial(params, params.cu_seqlens[i], params.cu_seqlens[i + 1]);
  return good;
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
