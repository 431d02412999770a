// SPDX-License-Identifier: Apache-2.0
// e4m3, the eight bits with a sign, four of exponent and three of fraction that caches are stored in (OCP
// 8-bit Floating Point Specification 1.0): up to 448, down to 2^-9, no infinities, 0x7f and 0xff are NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/host_device.h"

namespace earnest {

struct Float8 {
  uint8_t bits;
};

namespace {

EARNEST_HOST_DEVICE inline float widen(Float8 value) {
  const uint32_t magnitude = value.bits & 0x7fu, exponent = magnitude >> 3;
  const uint32_t bits = magnitude == 0x7f ? 0x7fc00000u : (exponent + 120) << 23 | (magnitude & 7u) << 20;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  if (exponent == 0) result = static_cast<float>(magnitude) * 0x1p-9f;
  return (value.bits & 0x80u) != 0 ? -result : result;
}

// Round to nearest, ties to even; beyond 448 it stays 448. NaN and infinities, which have no place in a
// cache, become NaN.
EARNEST_HOST_DEVICE inline void narrow(float value, Float8* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 24 & 0x80u;
  bits &= 0x7fffffffu;
  uint32_t magnitude;
  if (bits >= 0x7f800000u) {
    magnitude = 0x7f;
  } else if (bits >= 0x43e00000u) {  // 448
    magnitude = 0x7e;
  } else if (bits >= 0x3c800000u) {  // 2^-6, the least with a full fraction
    magnitude = ((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3);
  } else {  // whole multiples of 2^-9: adding 2^14 leaves them in the low bits, rounded
    float shifted;
    std::memcpy(&shifted, &bits, sizeof shifted);
    shifted += 0x1p14f;
    std::memcpy(&bits, &shifted, sizeof bits);
    magnitude = bits & 0xfu;
  }
  out->bits = static_cast<uint8_t>(sign | magnitude);
}

}  // namespace

}  // namespace earnest
