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
#include <limits>
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
template <typename V>
constexpr int kLanesOf = sizeof(V) / sizeof(V{}[0]);

template <typename T>
inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}
template <typename V>
using ElementOf = std::remove_cv_t<std::remove_reference_t<decltype(V{}[0])>>;

// The second where they are equal, or not numbers. (Spelled out: GCC 12 makes a comparison and a choice of
// `a > b ? a : b`, and warns of the forms without a mask.)
template <typename V>
inline V larger(V a, V b) {
#if EARNEST_PPO_BYTES == 64
  if constexpr (std::is_same_v<ElementOf<V>, float>) return _mm512_maskz_max_ps(0xffff, a, b);
  if constexpr (std::is_same_v<ElementOf<V>, double>) return _mm512_maskz_max_pd(0xff, a, b);
#elif EARNEST_PPO_BYTES == 32
  if constexpr (std::is_same_v<ElementOf<V>, float>) return _mm256_max_ps(a, b);
  if constexpr (std::is_same_v<ElementOf<V>, double>) return _mm256_max_pd(a, b);
#else
  return a > b ? a : b;
#endif
}
template <typename V>
inline V smaller(V a, V b) {
#if EARNEST_PPO_BYTES == 64
  if constexpr (std::is_same_v<ElementOf<V>, float>) return _mm512_maskz_min_ps(0xffff, a, b);
  if constexpr (std::is_same_v<ElementOf<V>, double>) return _mm512_maskz_min_pd(0xff, a, b);
#elif EARNEST_PPO_BYTES == 32
  if constexpr (std::is_same_v<ElementOf<V>, float>) return _mm256_min_ps(a, b);
  if constexpr (std::is_same_v<ElementOf<V>, double>) return _mm256_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}
template <typename V>
inline V clamp(V x, V low, V high) {
  return smaller(larger(x, low), high);
}
template <typename V>
inline V absolute(V x) {
  using Integer = IntegerOf<ElementOf<V>>;
  return reinterpret_cast<V>(reinterpret_cast<Vec<Integer>>(x) & std::numeric_limits<Integer>::max());
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

// Between the types of arrays and of arithmetic. (Spelled out where GCC 12 takes vectors apart for it.)
template <typename A, typename V>
inline Vec<A> converted(V x) {
  if constexpr (std::is_same_v<A, ElementOf<V>>) return x;
#if EARNEST_PPO_BYTES == 64
  if constexpr (sizeof(A) > sizeof(ElementOf<V>)) return _mm512_maskz_cvtps_pd(0xff, x);
#elif EARNEST_PPO_BYTES == 32
  if constexpr (sizeof(A) > sizeof(ElementOf<V>)) return _mm256_cvtps_pd(x);
#else
  if constexpr (sizeof(A) > sizeof(ElementOf<V>)) return __builtin_convertvector(x, Vec<A>);
#endif
}

// Loads and stores of the first n lanes; missing lanes read 0. A is the type of the arithmetic.
template <typename A, typename T>
inline Vec<A> load(const T* p, int n) {
  typename VectorOf<T, kLanes<A>>::type x{};
  if (n == kLanes<A>)
    std::memcpy(&x, p, sizeof(x));
  else
    std::memcpy(&x, p, n * sizeof(T));
  return converted<A>(x);
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

template <int kHalf>
inline auto half(Vec<float> x) {
#if EARNEST_PPO_BYTES == 64
  return _mm512_maskz_extractf32x8_ps(0xff, x, kHalf);
#elif EARNEST_PPO_BYTES == 32
  return _mm256_extractf128_ps(x, kHalf);
#else
  return __builtin_shufflevector(x, x, 2 * kHalf, 2 * kHalf + 1);
#endif
}

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
      wide[0] = converted<double>(half<0>(x));
      wide[1] = converted<double>(half<1>(x));
    }
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

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
