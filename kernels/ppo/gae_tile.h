// SPDX-License-Identifier: Apache-2.0
// Generalised advantage estimation of one sequence, a vector of tokens at a time. Included once per tier
// (lanes.h).
//
// With u_t = V_t + lam A_t of the next trainable token, both recurrences become one:
//   A_t = r_t - V_t + gamma u_next      u_t = b_t + c u_next,   b_t = (1 - lam) V_t + lam r_t,  c = gamma lam
// and a masked token passes u on. Within a vector, with k_i trainable tokens before lane i and n in all, this
// is
//   u_i = c^-k_i (sum of b_j c^k_j over trainable j >= i, + c^n u of the vector after)
// where every term of the sum has its own weight: lanes meet in a plain sum from the end. Only one
// multiply-add per vector waits for the vector after it, and that one is in double: rounding to float is
// never carried on.
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

// How many of these bytes of 0 or 1 are 1, up to and with each.
template <int kStep = 1>
inline Flags counts_up_to(Flags flags) {
  if constexpr (kStep < 16) return counts_up_to<kStep * 2>(flags + from_later<16 - kStep>(Flags{}, flags));
  return flags;
}

#if EARNEST_PPO_BYTES > 16
template <typename T, bool kCumulative>
struct GaeScan {
  const GaeParams<T> params;
  const Vec<T> zero{}, gamma = splat(T(params.gamma)), lam = splat(T(params.lam)),
                       rest = splat(T(1.0 - params.lam));
  Vec<T> power{}, inverse{};       // c^k and c^-k of lane k
  double powers[kLanes<T> + 1]{};  // c^k
  double carry = 0.0;              // u of the first token after the vector
  Vec<T> poison{};                 // 0, or not a number once an entry was not finite
  Mask<T> lost{};                  // rewards that would be lost

  explicit GaeScan(const GaeParams<T>& p) : params(p) {
    double c = 1.0;
    for (int k = 0; k <= kLanes<T>; ++k, c *= p.gamma * p.lam) {
      powers[k] = c;
      if (k == kLanes<T>) break;
      power[k] = static_cast<T>(c);
      inverse[k] = static_cast<T>(1.0 / c);
    }
  }

  // kCumulative is gamma = lam = 1: b = r, c = 1, and the return is the reverse cumulative reward itself.
  template <typename Lanes>
  void step(int64_t t, Lanes n) {
    const Flags flags = (load_flags<T>(params.trainable + t, n) != 0) & 1;
    const Mask<T> mask = mask_of<T>(flags);
    const Vec<T> reward_in = load<T>(params.rewards + t, n);
    const Vec<T> reward = keep(mask, reward_in), value = keep(mask, load<T>(params.values + t, n));
    const Vec<T> surplus = reward - value;
    poison += surplus * zero;
    if (params.refuse_masked_rewards) lost |= ~mask & ~(reward_in == zero);

    Vec<T> u;
    const double after = carry;
    if constexpr (kCumulative) {
      const Vec<T> total = sum_from_end<1>(reward);
      u = total + splat(static_cast<T>(after));
      carry = after + total[0];
    } else {
      const Flags counts = counts_up_to(flags);
      const Mask<T> rank = widened<T>(counts - flags);
      const Vec<T> total = sum_from_end<1>((rest * value + lam * reward) * __builtin_shuffle(power, rank));
      const double faded = after * powers[counts[kLanes<T> - 1]];
      u = (total + splat(static_cast<T>(faded))) * __builtin_shuffle(inverse, rank);
      carry = faded + total[0];
    }
    const Vec<T> u_next = from_later<1>(u, splat(static_cast<T>(after)));
    const Vec<T> advantage = kCumulative ? u - value : surplus + gamma * u_next;
    store<T>(params.advantages + t, keep(mask, advantage), n);
    store<T>(params.returns + t, keep(mask, kCumulative ? u : advantage + value), n);
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
