// SPDX-License-Identifier: Apache-2.0
// Chosen lanes move together at the front of a vector, and back again. Included once per tier (lanes.h),
// where there are shuffles by index.
#pragma once

#include "kernels/ppo/masks.h"

#if EARNEST_PPO_BYTES > 16
namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

#if EARNEST_PPO_BYTES == 64

// Bit i is set where byte i is not 0.
inline __mmask16 bits_of(Flags bytes) { return mask_of<float>(bytes).bits; }

// The lanes whose bit is set move together at the front, and back again; the others become 0.
template <typename T>
inline Vec<T> compressed(__mmask16 bits, Vec<T> x) {
  if constexpr (sizeof(T) == 4) return _mm512_maskz_compress_ps(bits, x);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), x);
}
template <typename T>
inline Vec<T> expanded(__mmask16 bits, Vec<T> x) {
  if constexpr (sizeof(T) == 4) return _mm512_maskz_expand_ps(bits, x);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_expand_pd(static_cast<__mmask8>(bits), x);
}

#else

inline uint32_t bits_of(Flags bytes) {
  return static_cast<uint32_t>(_mm_movemask_epi8(reinterpret_cast<__m128i>(bytes != 0)));
}

// For each pattern of bits: where the lanes come from that move together, and where each goes back to. Lanes
// without a source name lane 128, which stands for 0.
struct LaneMoves {
  uint8_t together[256][8], back[256][8];
  constexpr LaneMoves() : together(), back() {
    for (int bits = 0; bits < 256; ++bits) {
      int count = 0;
      for (int i = 0; i < 8; ++i) together[bits][i] = back[bits][i] = 128;
      for (int i = 0; i < 8; ++i) {
        if (bits >> i & 1)
          back[bits][i] = static_cast<uint8_t>(count), together[bits][count++] = static_cast<uint8_t>(i);
      }
    }
  }
};
constexpr LaneMoves kLaneMoves;

template <typename T>
inline Vec<T> moved(const uint8_t* sources, Vec<T> x) {
  uint64_t bytes;
  std::memcpy(&bytes, sources, 8);
  const Vec<IntegerOf<T> > lanes = widened<T>(flags_of(bytes));
  return keep(lanes < 128, __builtin_shuffle(x, lanes));
}
template <typename T>
inline Vec<T> compressed(uint32_t bits, Vec<T> x) {
  return moved<T>(kLaneMoves.together[bits], x);
}
template <typename T>
inline Vec<T> expanded(uint32_t bits, Vec<T> x) {
  return moved<T>(kLaneMoves.back[bits], x);
}

#endif

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
#endif
