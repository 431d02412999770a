// SPDX-License-Identifier: Apache-2.0
// The exponential of a vector, and what is left of it above its tangent at 0. Included once per tier
// (lanes.h).
#pragma once

#include "kernels/ppo/lanes.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

template <typename V>
struct Exp {
  V value;   // exp(x)
  V excess;  // exp(x) - 1 - x, without cancellation
};

// x = n ln2 + r, |r| <= ln2 / 2, and (exp(r) - 1 - r) / r^2 = 1/2! + r/3! + r^2/4! + ...: even and odd powers
// apart, so that there are two short chains instead of a long one.
template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<double> {
  static constexpr double kRound = 0x1.8p52;  // adding it rounds to an integer, found in the low bits
  static constexpr double kLn2High = 0x1.62e42fefa0000p-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr int kBias = 1023, kMantissa = 52;
  static constexpr int kTerms = 6;  // up to r^11: the rest is below 1e-16 of the value
  static constexpr double kEven[] = {1.0 / 479001600, 1.0 / 3628800, 1.0 / 40320,
                                     1.0 / 720,       1.0 / 24,      1.0 / 2};
  static constexpr double kOdd[] = {1.0 / 6227020800, 1.0 / 39916800, 1.0 / 362880,
                                    1.0 / 5040,       1.0 / 120,      1.0 / 6};
};

template <>
struct ExpConstants<float> {
  static constexpr float kRound = 0x1.8p23f;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr int kBias = 127, kMantissa = 23;
  static constexpr int kTerms = 3;
  // The term r^6/8! is spread over r^4, r^2 and 1 (Chebyshev's T6 on |r| <= h), which leaves 3e-9 of it.
  static constexpr double kH2 = 0.120113253, kLast = 1.0 / 40320;
  static constexpr float kEven[] = {static_cast<float>(1.0 / 720 + 1.5 * kH2 * kLast),
                                    static_cast<float>(1.0 / 24 - 0.5625 * kH2 * kH2 * kLast),
                                    static_cast<float>(1.0 / 2 + kH2 * kH2 * kH2 / 32 * kLast)};
  static constexpr float kOdd[] = {1.0f / 5040, 1.0f / 120, 1.0f / 6};
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
