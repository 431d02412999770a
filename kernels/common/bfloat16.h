// SPDX-License-Identifier: Apache-2.0
// bfloat16 is the upper half of a float. The functions have internal linkage, so that code for one
// instruction set is never merged into another's by the linker.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/host_device.h"

namespace earnest {

struct BFloat16 {
  uint16_t bits;
};

namespace {

EARNEST_HOST_DEVICE inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
EARNEST_HOST_DEVICE inline float widen(float value) { return value; }
EARNEST_HOST_DEVICE inline double widen(double value) { return value; }

// Round to nearest, ties to even; NaN stays NaN.
EARNEST_HOST_DEVICE inline void narrow(float value, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>((nan ? bits | 0x400000u : rounded) >> 16);
}
EARNEST_HOST_DEVICE inline void narrow(float value, float* out) { *out = value; }
EARNEST_HOST_DEVICE inline void narrow(double value, double* out) { *out = value; }

}  // namespace

}  // namespace earnest
