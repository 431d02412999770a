// SPDX-License-Identifier: Apache-2.0
// bfloat16 is the upper half of a float.
#pragma once

#include <cstdint>
#include <cstring>

namespace earnest {

struct BFloat16 {
  uint16_t bits;
};

// Internal to each file that includes it: the tiers compile it with different instructions, and a linker that
// kept one copy for all could keep one that not every processor runs.
namespace {

inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline float widen(float value) { return value; }
inline double widen(double value) { return value; }

// Round to nearest, ties to even; NaN stays NaN.
inline void narrow(float value, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits =
      static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void narrow(float value, float* out) { *out = value; }
inline void narrow(double value, double* out) { *out = value; }

}  // namespace

}  // namespace earnest
