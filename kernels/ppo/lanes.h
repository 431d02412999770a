// SPDX-License-Identifier: Apache-2.0
// Vectors of floats or doubles as wide as the tier's registers (GCC and Clang vector extensions). Included
// once per tier, inside that tier's own namespace, so that no copy built for a newer machine can be linked
// into the code for an older one. The includer defines EARNEST_PPO_TIER and EARNEST_PPO_BYTES.
#pragma once

#if EARNEST_PPO_BYTES > 16
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross no boundary between differently compiled files

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

constexpr int kBytes = EARNEST_PPO_BYTES;
template <typename T>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

template <typename T>
using IntegerOf = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
template <typename T, int kCount>
struct VectorOf {
  typedef T type __attribute__((vector_size(kCount * sizeof(T))));
};
template <typename T>
using Vec = typename VectorOf<T, kLanes<T>>::type;
template <typename T>
using Mask = Vec<IntegerOf<T>>;  // each lane 0 or -1
template <typename V>
constexpr int kLanesOf = sizeof(V) / sizeof(V{}[0]);

template <typename T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}
template <typename M, typename V>
inline V select(M mask, V a, V b) {
  return mask ? a : b;
}
template <typename M, typename V>
inline V keep(M mask, V a) {
  return mask ? a : V{};
}
template <typename V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
inline V smaller(V a, V b) {
  return a < b ? a : b;
}
template <typename V>
inline V clamp(V x, V low, V high) {
  return smaller(larger(x, low), high);
}
template <typename V>
inline V absolute(V x) {
  return larger(x, -x);
}

// Lane i becomes lane i + kStep of x, or of `beyond` where that lies past the end.
template <int kStep, typename V, std::size_t... kIndex>
inline V later_lanes(V x, V beyond, std::index_sequence<kIndex...>) {
  return __builtin_shufflevector(x, beyond, (static_cast<int>(kIndex) + kStep)...);
}
template <int kStep, typename V>
inline V from_later(V x, V beyond) {
  return later_lanes<kStep>(x, beyond, std::make_index_sequence<kLanesOf<V>>());
}

// Reductions in one fixed order: halves of the vector meet until one lane is left.
template <int kCount, typename V, typename Join>
inline V joined_lanes(V x, Join join) {
  if constexpr (kCount > 1) return joined_lanes<kCount / 2>(join(x, from_later<kCount / 2>(x, x)), join);
  return x;
}
template <typename V>
inline auto sum(V x) {
  return joined_lanes<kLanesOf<V>>(x, [](V a, V b) { return a + b; })[0];
}
template <typename V>
inline auto maximum(V x) {
  return joined_lanes<kLanesOf<V>>(x, [](V a, V b) { return larger(a, b); })[0];
}
template <typename M>
inline bool any(M mask) {
  return joined_lanes<kLanesOf<M>>(mask, [](M a, M b) { return a | b; })[0] != 0;
}

// The number of lanes in use, where it is all of them: a constant, so that whole vectors take no branches.
template <typename T>
struct AllLanes {
  constexpr operator int() const { return kLanes<T>; }
};

// Calls body(t, n) for the vectors of [begin, end) in order: n is AllLanes, and for a shorter last one an
// int.
template <typename T, typename Body>
inline void for_each_vector(int64_t begin, int64_t end, Body body) {
  int64_t t = begin;
  for (; end - t >= kLanes<T>; t += kLanes<T>) body(t, AllLanes<T>{});
  if (t < end) body(t, static_cast<int>(end - t));
}

// Loads and stores of the first n lanes; missing lanes read 0. A is the type of the arithmetic.
template <typename A, typename T>
inline Vec<A> load(const T* p, int n) {
  typename VectorOf<T, kLanes<A>>::type x{};
  if (n == kLanes<A>)
    std::memcpy(&x, p, sizeof(x));
  else
    std::memcpy(&x, p, n * sizeof(T));
  if constexpr (std::is_same_v<A, T>)
    return x;
  else
    return __builtin_convertvector(x, Vec<A>);
}
template <typename A, typename T>
inline void store(T* p, Vec<A> x, int n) {
  typename VectorOf<T, kLanes<A>>::type y;
  if constexpr (std::is_same_v<A, T>)
    y = x;
  else
    y = __builtin_convertvector(x, decltype(y));
  if (n == kLanes<A>)
    std::memcpy(p, &y, sizeof(y));
  else
    std::memcpy(p, &y, n * sizeof(T));
}

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

#if EARNEST_PPO_BYTES > 16
// Each byte in a lane of its own. (Spelled out for each width: GCC 12 converts bytes one by one, and warns of
// the forms without a mask.)
template <typename T>
inline Mask<T> widened(Flags bytes) {
  const __m128i x = reinterpret_cast<__m128i>(bytes);
#if EARNEST_PPO_BYTES == 64
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Mask<T>>(_mm512_maskz_cvtepu8_epi32(0xffff, x));
  if constexpr (sizeof(T) == 8) return reinterpret_cast<Mask<T>>(_mm512_maskz_cvtepu8_epi64(0xff, x));
#else
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Mask<T>>(_mm256_cvtepu8_epi32(x));
  if constexpr (sizeof(T) == 8) return reinterpret_cast<Mask<T>>(_mm256_cvtepu8_epi64(x));
#endif
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
inline Mask<T> load_mask(const uint8_t* p, int n) {
  return mask_of<T>(load_flags<T>(p, n));
}

#if EARNEST_PPO_BYTES > 16
// Bit i is set where byte i is not 0.
inline uint32_t bits_of(Flags bytes) {
  return static_cast<uint32_t>(_mm_movemask_epi8(reinterpret_cast<__m128i>(bytes != 0)));
}
#endif

// The lanes whose bit is set move together at the front, and back again; the others become 0.
#if EARNEST_PPO_BYTES == 64
template <typename T>
inline Vec<T> compressed(uint32_t bits, Vec<T> x) {
  if constexpr (sizeof(T) == 4) return _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), x);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), x);
}
template <typename T>
inline Vec<T> expanded(uint32_t bits, Vec<T> x) {
  if constexpr (sizeof(T) == 4) return _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), x);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_expand_pd(static_cast<__mmask8>(bits), x);
}
#elif EARNEST_PPO_BYTES == 32
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
  const Mask<T> lanes = widened<T>(flags_of(bytes));
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

// A sum of many numbers, kept in double also where the lanes are float.
template <typename T>
struct Total {
  static constexpr int kParts = sizeof(double) / sizeof(T);
  typedef Vec<double> Wide[kParts];
  Wide parts{};

  static void widen(Vec<T> x, Wide& wide) {
    if constexpr (kParts == 1) {
      wide[0] = x;
    } else {
      widen_halves(x, wide, std::make_index_sequence<kLanes<double>>());
    }
  }
  template <std::size_t... kIndex>
  static void widen_halves(Vec<T> x, Wide& wide, std::index_sequence<kIndex...>) {
    wide[0] =
        __builtin_convertvector(__builtin_shufflevector(x, x, static_cast<int>(kIndex)...), Vec<double>);
    wide[1] = __builtin_convertvector(
        __builtin_shufflevector(x, x, (static_cast<int>(kIndex) + kLanes<double>)...), Vec<double>);
  }

  void add(const Wide& x) {
    for (int i = 0; i < kParts; ++i) parts[i] += x[i];
  }
  void add_squares(const Wide& x) {
    for (int i = 0; i < kParts; ++i) parts[i] += x[i] * x[i];
  }
  void add(Vec<T> x) {
    Wide wide;
    widen(x, wide);
    add(wide);
  }
  void add_squares(Vec<T> x) {
    Wide wide;
    widen(x, wide);
    add_squares(wide);
  }
  double value() const {
    Vec<double> joined = parts[0];
    for (int i = 1; i < kParts; ++i) joined += parts[i];
    return sum(joined);
  }
};

// How often each lane was chosen.
template <typename T>
struct Counter {
  Mask<T> lanes{};
  void add(Mask<T> mask) { lanes -= mask; }
  double value() const { return static_cast<double>(sum(lanes)); }
};

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
