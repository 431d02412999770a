// SPDX-License-Identifier: Apache-2.0
// exponential.h of one number.
#pragma once

#include "kernels/common/simt.h"
#include "kernels/ppo/exponential_constants.h"

namespace earnest::ppo {
namespace {

template <typename T>
struct Exp {
  T value;   // exp(x)
  T excess;  // exp(x) - 1 - x, without cancellation
};

// 2^n, where n stands in the low bits of n + kRound.
__device__ inline float power_of_two(float shifted) {
  using C = ExpConstants<float>;
  return __int_as_float((__float_as_int(shifted) - __float_as_int(C::kRound) + C::kBias) << C::kMantissa);
}
__device__ inline double power_of_two(double shifted) {
  using C = ExpConstants<double>;
  const long long n = __double_as_longlong(shifted) - __double_as_longlong(C::kRound);
  return __longlong_as_double((n + C::kBias) << C::kMantissa);
}

__device__ inline float even_terms(float square) {
  using C = ExpConstants<float>;
  constexpr float k0 = C::kEven[0], k1 = C::kEven[1], k2 = C::kEven[2];
  return (k0 * square + k1) * square + k2;
}
__device__ inline float odd_terms(float square) {
  using C = ExpConstants<float>;
  constexpr float k0 = C::kOdd[0], k1 = C::kOdd[1], k2 = C::kOdd[2];
  return (k0 * square + k1) * square + k2;
}
__device__ inline double even_terms(double square) {
  using C = ExpConstants<double>;
  constexpr double k0 = C::kEven[0], k1 = C::kEven[1], k2 = C::kEven[2], k3 = C::kEven[3], k4 = C::kEven[4],
                   k5 = C::kEven[5];
  return ((((k0 * square + k1) * square + k2) * square + k3) * square + k4) * square + k5;
}
__device__ inline double odd_terms(double square) {
  using C = ExpConstants<double>;
  constexpr double k0 = C::kOdd[0], k1 = C::kOdd[1], k2 = C::kOdd[2], k3 = C::kOdd[3], k4 = C::kOdd[4],
                   k5 = C::kOdd[5];
  return ((((k0 * square + k1) * square + k2) * square + k3) * square + k4) * square + k5;
}

// For |x| <= 80.
template <typename T>
__device__ inline Exp<T> exponential(T x) {
  using C = ExpConstants<T>;
  const T shifted = x * T(1.4426950408889634) + C::kRound;
  const T n = shifted - C::kRound;
  const T r = (x - n * C::kLn2High) - n * C::kLn2Low;
  const T square = r * r;
  const T tail = square * (even_terms(square) + r * odd_terms(square));  // exp(r) - 1 - r
  const T scale = power_of_two(shifted);
  const T above = scale - T(1);
  const T step = (above - n * C::kLn2High) - n * C::kLn2Low;
  return {scale + scale * (r + tail), (step + above * r) + scale * tail};
}

}  // namespace
}  // namespace earnest::ppo
