// SPDX-License-Identifier: Apache-2.0
// Vectors of one tier, in GCC/Clang vector extensions: loads, sums over lanes, exp. A tier's source file
// defines EARNEST_TIER (its namespace) and EARNEST_VECTOR_BYTES first. Everything here has internal linkage.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define EARNEST_INLINE static inline __attribute__((always_inline))

namespace earnest::logprob::EARNEST_TIER {
namespace {

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(EARNEST_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(EARNEST_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(EARNEST_VECTOR_BYTES), aligned(8), may_alias));
};
template <typename T>
using Vec = typename Vector<T>::Type;
template <typename T>
constexpr int64_t kLanes = EARNEST_VECTOR_BYTES / static_cast<int64_t>(sizeof(T));

template <typename T>
EARNEST_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::Unaligned*>(from);
}
template <typename T>
EARNEST_INLINE void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename Vector<T>::Unaligned*>(to) = value;
}

// One step of turning a square of kLanes vectors: swaps the blocks of `half` lanes off the diagonal.
template <typename T, int64_t half, size_t... lane>
EARNEST_INLINE void swap_blocks(Vec<T>* a, Vec<T>* b, std::index_sequence<lane...>) {
  constexpr int64_t lanes = kLanes<T>;
  const Vec<T> upper = *a, lower = *b;
  *a = __builtin_shufflevector(upper, lower, (lane & half ? lanes + (lane ^ half) : lane)...);
  *b = __builtin_shufflevector(upper, lower, (lane & half ? lanes + lane : lane ^ half)...);
}
template <typename T, int64_t half = kLanes<T> / 2>
EARNEST_INLINE void transpose_square(Vec<T>* rows) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    if ((i & half) == 0)
      swap_blocks<T, half>(rows + i, rows + i + half, std::make_index_sequence<kLanes<T>>());
  }
  if constexpr (half > 1) transpose_square<T, half / 2>(rows);
}

// out[i] = the lanes of values[i] joined two by two, in the same order for every i.
template <typename T, typename Join>
EARNEST_INLINE void join_lanes(const Vec<T>* values, int64_t count, T* out, Join join) {
  for (int64_t first = 0; first < count; first += kLanes<T>) {
    const int64_t rows = count - first < kLanes<T> ? count - first : kLanes<T>;
    Vec<T> square[kLanes<T>] = {};
    for (int64_t i = 0; i < rows; ++i) square[i] = values[first + i];
    transpose_square<T>(square);
#pragma GCC unroll 8
    for (int64_t half = kLanes<T> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < half; ++i) square[i] = join(square[i], square[i + half]);
    }
    std::memcpy(out + first, &square[0], static_cast<size_t>(rows) * sizeof(T));
  }
}

// exp(x) for x at most a little above 0, to about 1 unit in the last place. Exactly 0 below kLowest; NaN
// stays NaN. x = n log 2 + r with |r| <= log(2) / 2, found by adding a constant that pushes n into the low
// bits; exp(r) by a polynomial (Cephes for float, the Taylor series for double); 2^n by its bits.
template <typename T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float kLowest = -87.0f, kShift = 12582912.0f, kLog2E = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kExponentBits = 23, kBias = 127;
  static constexpr float kTerms[] = {1.9875691500e-4f,
                                     1.3981999507e-3f,
                                     8.3334519073e-3f,
                                     4.1665795894e-2f,
                                     1.6666665459e-1f,
                                     5.0000001201e-1f,
                                     1.0f,
                                     1.0f};
};
template <>
struct Exp<double> {
  static constexpr double kLowest = -708.0, kShift = 6755399441055744.0, kLog2E = 1.4426950408889634074;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr int kExponentBits = 52, kBias = 1023;
  static constexpr double kTerms[] = {
      1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
      1 / 720.0,        1 / 120.0,       1 / 24.0,       1 / 6.0,       1 / 2.0,      1.0,         1.0};
};
template <typename T>
EARNEST_INLINE Vec<T> clamp_for_exp(Vec<T> x) {
  return x < Exp<T>::kLowest ? Vec<T>{} + Exp<T>::kLowest : x;
}
template <typename T>
EARNEST_INLINE Vec<T> exp_of(Vec<T> x) {
  using E = Exp<T>;
  using Int = typename Vector<T>::Int;
  const Vec<T> zero = {}, clamped = clamp_for_exp<T>(x);
  const Vec<T> shifted = clamped * E::kLog2E + E::kShift;
  const Vec<T> n = shifted - E::kShift;
  const Vec<T> r = (clamped - n * E::kLn2High) - n * E::kLn2Low;
  Vec<T> value = zero + E::kTerms[0];
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof(E::kTerms) / sizeof(T); ++i) value = value * r + E::kTerms[i];
  const Int scale = (reinterpret_cast<Int>(shifted) << E::kExponentBits) +
                    (static_cast<decltype(Int{}[0] + 0)>(E::kBias) << E::kExponentBits);
  value *= reinterpret_cast<Vec<T>>(scale);
  return x < E::kLowest ? zero : value;
}

}  // namespace
}  // namespace earnest::logprob::EARNEST_TIER
