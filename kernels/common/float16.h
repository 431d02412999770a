// SPDX-License-Identifier: Apache-2.0
// float16 of IEEE 754: 5 bits of exponent, 10 of mantissa. With internal linkage, as bfloat16.h says why.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/host_device.h"

namespace earnest {

struct Float16 {
  uint16_t bits;
};

namespace {

EARNEST_HOST_DEVICE inline float widen(Float16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  float magnitude;
  if (rest < 0x400u) {  // below the normal numbers: so many times 2^-24
    magnitude = static_cast<float>(rest) * 0x1p-24f;
  } else {
    const uint32_t widened = (rest << 13) + (rest < 0x7c00u ? 112u << 23 : 224u << 23);
    std::memcpy(&magnitude, &widened, sizeof magnitude);
  }
  uint32_t bits;
  std::memcpy(&bits, &magnitude, sizeof bits);
  bits |= sign;
  std::memcpy(&magnitude, &bits, sizeof bits);
  return magnitude;
}

// Round to nearest, ties to even; what is too large becomes Inf, NaN stays NaN.
EARNEST_HOST_DEVICE inline void narrow(float value, Float16* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t result;
  if (rest > 0x7f800000u) {
    result = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // from 65520 on
    result = 0x7c00u;
  } else if (rest < 0x38800000u) {  // below 2^-14: added to 1/2, whose last place is 2^-24, it is rounded
    float magnitude;
    std::memcpy(&magnitude, &rest, sizeof magnitude);
    magnitude += 0.5f;
    std::memcpy(&result, &magnitude, sizeof result);
    result -= 0x3f000000u;
  } else {
    result = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | result);
}

}  // namespace

}  // namespace earnest
