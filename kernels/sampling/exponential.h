// SPDX-License-Identifier: Apache-2.0
// exp(x) of x <= 0 with the same bits everywhere: whoever includes this is compiled without fusing products
// and sums (CMakeLists.txt, kernels/cuda.cmake). With internal linkage, as bfloat16.h says why.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/host_device.h"

namespace earnest::sampling {
namespace {

// x = k log 2 + r with |r| <= log(2) / 2, the series of exp(r) up to r^13 (what is left out is below 5e-18),
// and k added to the exponent. log 2 in two parts, of which the first has 21 zeros at its end, so that k
// times it is exact (Cody and Waite, "Software manual for the elementary functions", 1980).
EARNEST_HOST_DEVICE inline double exponential(double x) {
  constexpr double kLowest = -700;
  constexpr double kShift = 0x1.8p52;  // adding it leaves the nearest whole number in the last bits
  constexpr double kLog2E = 0x1.71547652b82fep0;
  constexpr double kHigh = 0x1.62e42feep-1, kLow = 0x1.a39ef35793c76p-33;
  const double kept = x < kLowest ? kLowest : x;
  const double shifted = kept * kLog2E + kShift;
  const double k = shifted - kShift;
  const double r = (kept - k * kHigh) - k * kLow;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r;
  p = p + 1.0;
  uint64_t bits, exponent;
  std::memcpy(&exponent, &shifted, 8);
  std::memcpy(&bits, &p, 8);
  bits += exponent << 52;
  double result;
  std::memcpy(&result, &bits, 8);
  return x < kLowest ? 0.0 : result;
}

}  // namespace
}  // namespace earnest::sampling
