// SPDX-License-Identifier: Apache-2.0
// Masked moments and whitening of one block of tokens. Included once per tier (lanes.h).
#pragma once

#include <cmath>

#include "kernels/ppo/masks.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

// Mean first, then squares about it: the block is still in cache the second time.
template <typename T>
bool moments_block(const MomentsParams<T>& params, int64_t begin, int64_t end, Moments* moments) {
  Vec<double> count{}, total{}, squares{};
  for_each_vector<double>(begin, end, [&](int64_t t, auto n) {
    const Mask<double> mask = load_mask<double>(params.trainable + t, n);
    const Vec<double> x = keep(mask, load<double>(params.x + t, n));
    count += keep(mask, splat(1.0));
    total += x;
  });
  const double entries = sum(count), mean = entries > 0.0 ? sum(total) / entries : 0.0;
  for_each_vector<double>(begin, end, [&](int64_t t, auto n) {
    const Mask<double> mask = load_mask<double>(params.trainable + t, n);
    const Vec<double> distance = keep(mask, load<double>(params.x + t, n) - splat(mean));
    squares += distance * distance;
  });
  *moments = {entries, mean, sum(squares)};
  return std::isfinite(moments->m2);  // an entry that is not finite makes every square so
}

template <typename T>
void whiten_block(const WhitenParams<T>& params, double scale, int64_t begin, int64_t end) {
  for_each_vector<double>(begin, end, [&](int64_t t, auto n) {
    const Mask<double> mask = load_mask<double>(params.trainable + t, n);
    const Vec<double> x = (load<double>(params.x + t, n) - splat(params.moments.mean)) * splat(scale);
    store<double>(params.out + t, keep(mask, x), n);
  });
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
