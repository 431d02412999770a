// SPDX-License-Identifier: Apache-2.0
// The exponential of a vector, and what is left of it above its tangent at 0. Included once per tier
// (lanes.h).
#pragma once

#include "kernels/ppo/exponential_constants.h"
#include "kernels/ppo/lanes.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

template <typename V>
struct Exp {
  V value;   // exp(x)
  V excess;  // exp(x) - 1 - x, without cancellation
};

// For |x| <= 80.
template <typename T>
inline Exp<Vec<T>> exponential(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> round = splat(C::kRound), one = splat(T(1));
  const Vec<T> shifted = x * splat(T(1.4426950408889634)) + round;
  const Vec<T> n = shifted - round;
  const Vec<T> r = (x - n * splat(C::kLn2High)) - n * splat(C::kLn2Low);
  const Vec<T> square = r * r;
  Vec<T> even = splat(C::kEven[0]), odd = splat(C::kOdd[0]);
  for (int i = 1; i < C::kTerms; ++i) {
    even = even * square + splat(C::kEven[i]);
    odd = odd * square + splat(C::kOdd[i]);
  }
  const Vec<T> tail = square * (even + r * odd);  // exp(r) - 1 - r
  using Integers = Vec<IntegerOf<T>>;
  const Integers bits = reinterpret_cast<Integers>(shifted) - reinterpret_cast<Integers>(round);
  const Vec<T> scale = reinterpret_cast<Vec<T>>((bits + C::kBias) << C::kMantissa);  // 2^n
  // exp(x) - 1 - x = (2^n - 1 - n ln2) + (2^n - 1) r + 2^n tail: tail itself where n = 0
  const Vec<T> above = scale - one;
  const Vec<T> step = (above - n * splat(C::kLn2High)) - n * splat(C::kLn2Low);
  return {scale + scale * (r + tail), (step + above * r) + scale * tail};
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
