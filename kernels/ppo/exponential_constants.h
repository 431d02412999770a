// SPDX-License-Identifier: Apache-2.0
// The numbers of exponential.h and of its like on a GPU.
#pragma once

namespace earnest::ppo {

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

}  // namespace earnest::ppo
