// SPDX-License-Identifier: Apache-2.0
// Generalised advantage estimation of one sequence, kLanes tokens at a time. Included once per tier
// (lanes.h).
//
// With u_t = V_t + lam A_t of the next trainable token, both recurrences become one:
//   A_t = r_t - V_t + gamma u_next      u_t = b_t + c_t u_next,   b_t = (1 - lam) V_t + lam r_t,  c_t = gamma
//   lam
// and a masked token passes u on: b = 0, c = 1. Such affine steps compose, so the lanes of a vector are
// joined by a doubling scan and only one multiply-add per vector waits for the vector after it.
#pragma once

#include "kernels/ppo/lanes.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

template <int kStep, bool kCumulative>
inline void scan_step(Vec* b, Vec* c) {
  if constexpr (kStep < kLanes) {
    const Vec later = from_later<kStep>(*b, Vec{});
    if constexpr (kCumulative) {
      *b += later;
    } else {
      *b += *c * later;
      *c *= from_later<kStep>(*c, splat(1.0));
    }
    scan_step<kStep * 2, kCumulative>(b, c);
  }
}

// kCumulative is gamma = lam = 1: b = r, c = 1, and the return is the reverse cumulative reward itself.
template <typename T, bool kCumulative>
bool gae_scan(const GaeParams<T>& params, int64_t begin, int64_t end) {
  const Vec gamma = splat(params.gamma), lam = splat(params.lam);
  Mask bad{};
  Vec carry{};  // u of the first token after this vector, in every lane
  const auto step = [&](int64_t t, auto n) {
    const Mask mask = load_mask(params.trainable + t, n);
    const Vec reward_in = load(params.rewards + t, n);
    const Vec reward = keep(mask, reward_in), value = keep(mask, load(params.values + t, n));
    bad |= ~(finite(reward) & finite(value));
    if (params.refuse_masked_rewards) bad |= reward_in != reward;
    Vec b = kCumulative ? reward : (splat(1.0) - lam) * value + lam * reward;
    Vec c = select(mask, gamma * lam, splat(1.0));
    scan_step<1, kCumulative>(&b, &c);
    const Vec u = kCumulative ? b + carry : b + c * carry;
    const Vec u_next = from_later<1>(u, carry);
    const Vec advantage = kCumulative ? u - value : reward - value + gamma * u_next;
    store(params.advantages + t, keep(mask, advantage), n);
    store(params.returns + t, keep(mask, kCumulative ? u : advantage + value), n);
    carry = splat(u[0]);
  };
  int64_t t = end;
  while (t - begin >= kLanes) step(t -= kLanes, AllLanes{});
  if (t > begin) step(begin, static_cast<int>(t - begin));
  return !any(bad);
}

template <typename T>
bool gae_sequence(const GaeParams<T>& params, int64_t begin, int64_t end) {
  if (params.gamma == 1.0 && params.lam == 1.0) return gae_scan<T, true>(params, begin, end);
  return gae_scan<T, false>(params, begin, end);
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
