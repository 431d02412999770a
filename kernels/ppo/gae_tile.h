// SPDX-License-Identifier: Apache-2.0
// Generalised advantage estimation of one sequence, a vector of tokens at a time. Included once per tier
// (lanes.h).
//
// With u_t = V_t + lam A_t of the next trainable token, both recurrences become one:
//   A_t = r_t - V_t + gamma u_next      u_t = b_t + c u_next,   b_t = (1 - lam) V_t + lam r_t,  c = gamma lam
// The b of a vector's trainable tokens move together at its front, meet in sums of 2, 4, 8 ... neighbours,
// and u of the token after the vector comes on top; then u_next moves back to where its token stands. Only
// one multiply-add per vector waits for the vector after it, and that one is in double: rounding to float is
// never carried on.
#pragma once

#include <cmath>

#include "kernels/ppo/moves.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

#if EARNEST_PPO_BYTES > 16
template <typename T>
class GaeScan {
 public:
  explicit GaeScan(const GaeParams<T>& params) : p_(params) {
    w_.of_value = splat(static_cast<T>(1.0 - params.lam));
    w_.of_reward = splat(static_cast<T>(params.lam));
    w_.gamma = splat(static_cast<T>(params.gamma));
    powers_[0] = 1.0;
    for (int i = 1; i <= kLanes<T>; ++i) powers_[i] = powers_[i - 1] * params.gamma * params.lam;
    for (int i = 0, step = 1; step < kLanes<T>; ++i, step *= 2)
      w_.steps[i] = splat(static_cast<T>(powers_[step]));
    for (int i = 0; i <= kLanes<T>; ++i) fading_[i] = static_cast<T>(powers_[kLanes<T> - i]);
  }

  // Whether no entry was found that may have to be reported.
  bool sequence(int64_t begin, int64_t end) {
    const Weights w = w_;
    double carry = 0.0;  // u of the first token after the vector
    for (; end - begin >= kLanes<T>; end -= kLanes<T>) step(w, end - kLanes<T>, AllLanes<T>{}, &carry);
    if (end > begin) step(w, begin, static_cast<int>(end - begin), &carry);
    return std::isfinite(carry) && !any(lost_);
  }

 private:
  struct Weights {
    Vec<T> of_value, of_reward, gamma;
    Vec<T> steps[4];  // c, c^2, c^4, c^8
  };

  template <typename Lanes>
  void step(const Weights& w, int64_t t, Lanes n, double* carry) {
    const Flags flags = load_flags<T>(p_.trainable + t, n);
    const Mask<T> mask = mask_of<T>(flags);
    const auto chosen = bits_of(flags);
    const int count = __builtin_popcount(chosen);
    const Vec<T> reward = load<T>(p_.rewards + t, n), value = load<T>(p_.values + t, n);
    if (p_.refuse_masked_rewards) lost_ |= ~(mask | equal(reward, Vec<T>{}));

    const Vec<T> near = with_later<0>(w, compressed<T>(chosen, w.of_value * value + w.of_reward * reward));
    const Vec<T> beyond = splat(static_cast<T>(*carry));
    const Vec<T> u = near + load<T>(fading_ + kLanes<T> - count, kLanes<T>) * beyond;
    const Vec<T> u_next = expanded<T>(chosen, from_later<1>(u, beyond));
    *carry = *carry * powers_[count] + near[0];
    const Vec<T> advantage = (reward - value) + w.gamma * u_next;
    store<T>(p_.advantages + t, keep(mask, advantage), n);
    store<T>(p_.returns + t, keep(mask, advantage + value), n);
  }

  // Sums of 2, 4, 8 ... tokens, each from its own on.
  template <int kIndex>
  static Vec<T> with_later(const Weights& w, Vec<T> x) {
    constexpr int kStep = 1 << kIndex;
    if constexpr (kStep < kLanes<T>)
      return with_later<kIndex + 1>(w, x + w.steps[kIndex] * from_later<kStep>(x, Vec<T>{}));
    return x;
  }

  const GaeParams<T> p_;
  Weights w_{};
  double powers_[kLanes<T> + 1];  // of c
  // From kLanes - count on: what u of the token behind `count` tokens adds to that of each, itself among
  // them.
  T fading_[2 * kLanes<T>] = {};
  Mask<T> lost_{};  // rewards that would be lost
};

// gamma = lam = 1: b = r, c = 1, and the return is the reverse cumulative reward itself; nothing has to move.
template <typename T>
class GaeSum {
 public:
  explicit GaeSum(const GaeParams<T>& params) : p_(params) {}

  bool sequence(int64_t begin, int64_t end) {
    carry_ = 0.0;
    for (; end - begin >= kLanes<T>; end -= kLanes<T>) step(end - kLanes<T>, AllLanes<T>{});
    if (end > begin) step(begin, static_cast<int>(end - begin));
    return !any(~equal(poison_, Vec<T>{}) | lost_);
  }

 private:
  template <int kStep>
  static Vec<T> sums_to(Vec<T> x) {
    if constexpr (kStep < kLanes<T>) return sums_to<kStep * 2>(x + from_later<kStep>(x, Vec<T>{}));
    return x;
  }

  template <typename Lanes>
  void step(int64_t t, Lanes n) {
    const Mask<T> mask = load_mask<T>(p_.trainable + t, n);
    const Vec<T> rewards = load<T>(p_.rewards + t, n);
    if (p_.refuse_masked_rewards) lost_ |= ~(mask | equal(rewards, Vec<T>{}));
    const Vec<T> reward = keep(mask, rewards), value = keep(mask, load<T>(p_.values + t, n));
    poison_ += (reward - value) * Vec<T>{};
    const Vec<T> total = sums_to<1>(reward), u = total + splat(static_cast<T>(carry_));
    carry_ += total[0];
    store<T>(p_.advantages + t, keep(mask, u - value), n);
    store<T>(p_.returns + t, keep(mask, u), n);
  }

  const GaeParams<T> p_;
  double carry_ = 0.0;  // the return of the first token after the vector
  Vec<T> poison_{};     // 0, or not a number once an entry was not finite
  Mask<T> lost_{};      // rewards that would be lost
};

template <typename Scan, typename T>
bool scan_sequences(const GaeParams<T>& params, int64_t first, int64_t last) {
  Scan scan(params);
  bool good = true;
  for (int64_t i = first; i < last; ++i)
    good &= scan.sequence(params.cu_seqlens[i], params.cu_seqlens[i + 1]);
  return good;
}
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
  if (params.gamma * params.lam == 1.0) return scan_sequences<GaeSum<T>>(params, first, last);
  return scan_sequences<GaeScan<T>>(params, first, last);
#else
  bool good = true;
  for (int64_t i = first; i < last; ++i)
    good &= gae_serial(params, params.cu_seqlens[i], params.cu_seqlens[i + 1]);
  return good;
#endif
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
