// SPDX-License-Identifier: Apache-2.0
// Which lanes of a vector count. AVX-512 has registers of bits for it; elsewhere a mask is a vector whose
// lanes are 0 or -1. Included once per tier (lanes.h).
#pragma once

#include "kernels/ppo/lanes.h"

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

// A byte for each lane: the first kLanes<T>; the others are 0.
typedef uint8_t Flags __attribute__((vector_size(16)));

inline Flags flags_of(uint64_t bytes) {
  typedef uint64_t Halves __attribute__((vector_size(16)));
  return reinterpret_cast<Flags>(Halves{bytes, 0});
}
template <typename T>
inline Flags load_flags(const uint8_t* p, int n) {
  if constexpr (kLanes<T> == 16) {
    Flags x{};
    if (n == 16)
      std::memcpy(&x, p, 16);
    else
      std::memcpy(&x, p, n);
    return x;
  }
  uint64_t bytes = 0;  // by way of a register: bytes put together in memory would have to wait to be read
  if (n == kLanes<T>)
    std::memcpy(&bytes, p, kLanes<T> < 8 ? kLanes<T> : 8);
  else
    std::memcpy(&bytes, p, n);
  return flags_of(bytes);
}

#if EARNEST_PPO_BYTES == 64

// Spelled out: of comparisons of vectors, GCC 12 makes vectors first, and then bits.
template <typename T>
struct Mask {
  using Bits = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;
  Bits bits = 0;

  friend Mask operator&(Mask a, Mask b) { return {static_cast<Bits>(a.bits & b.bits)}; }
  friend Mask operator|(Mask a, Mask b) { return {static_cast<Bits>(a.bits | b.bits)}; }
  friend Mask operator~(Mask a) { return {static_cast<Bits>(~a.bits)}; }
  Mask& operator&=(Mask other) { return *this = *this & other; }
  Mask& operator|=(Mask other) { return *this = *this | other; }
};
template <typename T>
inline bool any(Mask<T> mask) {
  return mask.bits != 0;
}

template <int kRelation, typename V>
inline Mask<ElementOf<V>> compared(V a, V b) {
  if constexpr (sizeof(ElementOf<V>) == 4) return {_mm512_cmp_ps_mask(a, b, kRelation)};
  if constexpr (sizeof(ElementOf<V>) == 8) return {_mm512_cmp_pd_mask(a, b, kRelation)};
}
template <typename V>
inline Mask<ElementOf<V>> greater(V a, V b) {
  return compared<_CMP_GT_OQ>(a, b);
}
template <typename V>
inline Mask<ElementOf<V>> equal(V a, V b) {
  return compared<_CMP_EQ_OQ>(a, b);
}
template <typename T>
inline Vec<T> select(Mask<T> mask, Vec<T> a, Vec<T> b) {
  if constexpr (sizeof(T) == 4) return _mm512_mask_blend_ps(mask.bits, b, a);
  if constexpr (sizeof(T) == 8) return _mm512_mask_blend_pd(mask.bits, b, a);
}
template <typename T>
inline Vec<T> keep(Mask<T> mask, Vec<T> a) {
  if constexpr (sizeof(T) == 4) return _mm512_maskz_mov_ps(mask.bits, a);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_mov_pd(mask.bits, a);
}

// Of each lane, whether its byte is not 0.
template <typename T>
inline Mask<T> mask_of(Flags bytes) {
  const __m128i x = reinterpret_cast<__m128i>(bytes);
  return {static_cast<typename Mask<T>::Bits>(_mm_test_epi8_mask(x, x))};
}

// How often lanes were chosen.
template <typename T>
struct Counter {
  int64_t count = 0;
  void add(Mask<T> mask) { count += __builtin_popcount(mask.bits); }
  double value() const { return static_cast<double>(count); }
};

#else

template <typename T>
using Mask = Vec<IntegerOf<T>>;
template <typename M>
inline bool any(M mask) {
  return joined_lanes<kLanesOf<M>>(mask, [](M a, M b) { return a | b; })[0] != 0;
}
template <typename V>
inline auto greater(V a, V b) {
  return a > b;
}
template <typename V>
inline auto equal(V a, V b) {
  return a == b;
}
template <typename M, typename V>
inline V select(M mask, V a, V b) {
  return mask ? a : b;
}
template <typename M, typename V>
inline V keep(M mask, V a) {
  return mask ? a : V{};
}

#if EARNEST_PPO_BYTES == 32
// Each byte in a lane of its own. (Spelled out: GCC 12 converts bytes one by one.)
template <typename T>
inline Vec<IntegerOf<T>> widened(Flags bytes) {
  const __m128i x = reinterpret_cast<__m128i>(bytes);
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Mask<T>>(_mm256_cvtepu8_epi32(x));
  if constexpr (sizeof(T) == 8) return reinterpret_cast<Mask<T>>(_mm256_cvtepu8_epi64(x));
}
template <typename T>
inline Mask<T> mask_of(Flags bytes) {
  return widened<T>(bytes) != 0;
}
#else
template <typename T, std::size_t... kIndex>
inline Mask<T> own_bytes(IntegerOf<T> bytes, std::index_sequence<kIndex...>) {
  return (splat(bytes) & Mask<T>{static_cast<IntegerOf<T>>(uint64_t{0xff} << (8 * kIndex))...}) != 0;
}
template <typename T>
inline Mask<T> mask_of(Flags bytes) {
  IntegerOf<T> word;  // little-endian: the lowest byte is lane 0
  std::memcpy(&word, &bytes, sizeof(word));
  return own_bytes<T>(word, std::make_index_sequence<kLanes<T>>());
}
#endif

template <typename T>
struct Counter {
  Mask<T> lanes{};
  void add(Mask<T> mask) { lanes -= mask; }
  double value() const { return static_cast<double>(sum(lanes)); }
};

#endif

template <typename T>
inline Mask<T> load_mask(const uint8_t* p, int n) {
  return mask_of<T>(load_flags<T>(p, n));
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
