// SPDX-License-Identifier: Apache-2.0
// Vectors of doubles as wide as the tier's registers (GCC and Clang vector extensions), with float or double
// in memory. Included once per tier, inside that tier's own namespace, so that no copy built for a newer
// machine can be linked into the code for an older one. The includer defines EARNEST_PPO_TIER and
// EARNEST_PPO_BYTES.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross no boundary between differently compiled files

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

constexpr int kLanes = EARNEST_PPO_BYTES / 8;

typedef double Vec __attribute__((vector_size(kLanes * 8)));
typedef int64_t Mask __attribute__((vector_size(kLanes * 8)));  // each lane 0 or -1
typedef uint64_t Bits __attribute__((vector_size(kLanes * 8)));
typedef std::conditional_t<kLanes == 8, uint64_t, std::conditional_t<kLanes == 4, uint32_t, uint16_t>> Word;
typedef float VecFloat __attribute__((vector_size(kLanes * 4)));

inline Vec splat(double x) { return Vec{} + x; }
inline Vec select(Mask mask, Vec a, Vec b) { return mask ? a : b; }
inline Vec keep(Mask mask, Vec a) { return reinterpret_cast<Vec>(reinterpret_cast<Mask>(a) & mask); }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
inline Vec clamp(Vec x, Vec low, Vec high) { return smaller(larger(x, low), high); }
inline Vec absolute(Vec x) { return larger(x, -x); }
inline Mask finite(Vec x) { return (x - x) == splat(0.0); }

inline bool any(Mask mask) {
  int64_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= mask[i];
  return bits != 0;
}

// Lane i becomes lane i + kStep of x, or of `beyond` where that lies past the end.
template <int kStep, std::size_t... kIndex>
inline Vec later_lanes(Vec x, Vec beyond, std::index_sequence<kIndex...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, beyond, (static_cast<int>(kIndex) + kStep)...);
#else
  return __builtin_shuffle(x, beyond, Mask{(static_cast<int64_t>(kIndex) + kStep)...});
#endif
}
template <int kStep>
inline Vec from_later(Vec x, Vec beyond) {
  return later_lanes<kStep>(x, beyond, std::make_index_sequence<kLanes>());
}

// Reductions in one fixed order.
inline double sum(Vec x) {
  double total = 0.0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}
inline double maximum(Vec x) {
  double best = x[0];
  for (int i = 1; i < kLanes; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// The number of lanes in use, where it is all of them: a constant, so that whole vectors take no branches.
struct AllLanes {
  constexpr operator int() const { return kLanes; }
};

// Calls body(t, n) for the vectors of [begin, end) in order: n is AllLanes, and for a shorter last one an
// int.
template <typename Body>
inline void for_each_vector(int64_t begin, int64_t end, Body body) {
  int64_t t = begin;
  for (; end - t >= kLanes; t += kLanes) body(t, AllLanes{});
  if (t < end) body(t, static_cast<int>(end - t));
}

// Loads and stores of the first n lanes, n <= kLanes; missing lanes read 0.
inline Vec load(const double* p, int n) {
  Vec x{};
  if (n == kLanes)
    std::memcpy(&x, p, sizeof(x));
  else
    std::memcpy(&x, p, n * sizeof(double));
  return x;
}
inline Vec load(const float* p, int n) {
  VecFloat x{};
  if (n == kLanes)
    std::memcpy(&x, p, sizeof(x));
  else
    std::memcpy(&x, p, n * sizeof(float));
  return __builtin_convertvector(x, Vec);
}
template <std::size_t... kIndex>
inline Mask own_bytes(uint64_t bytes, std::index_sequence<kIndex...>) {
  return (Bits{(kIndex * 0 + bytes)...} & Bits{(uint64_t{0xff} << (8 * kIndex))...}) != 0;
}
inline Mask load_mask(const uint8_t* p, int n) {
  Word word = 0;  // little-endian: byte i of the word is lane i
  if (n == kLanes)
    std::memcpy(&word, p, sizeof(word));
  else
    std::memcpy(&word, p, n);
  return own_bytes(word, std::make_index_sequence<kLanes>());
}
inline void store(double* p, Vec x, int n) {
  if (n == kLanes)
    std::memcpy(p, &x, sizeof(x));
  else
    std::memcpy(p, &x, n * sizeof(double));
}
inline void store(float* p, Vec x, int n) {
  const VecFloat y = __builtin_convertvector(x, VecFloat);
  if (n == kLanes)
    std::memcpy(p, &y, sizeof(y));
  else
    std::memcpy(p, &y, n * sizeof(float));
}

struct Exp {
  Vec value;   // exp(x)
  Vec excess;  // exp(x) - 1 - x, without the cancellation near 0
};

// exp for |x| <= 700: x = n ln2 + r, |r| <= ln2 / 2, and the Taylor series of (exp(r) - 1 - r) / r^2 up to
// r^11, whose remainder is below 1e-16 of the value.
inline Exp exponential(Vec x) {
  const Vec magic = splat(0x1.8p52);  // adding it rounds to an integer, found in the low bits
  const Vec shifted = x * splat(1.4426950408889634) + magic;
  const Bits n = reinterpret_cast<Bits>(shifted) - reinterpret_cast<Bits>(magic);
  const Vec whole = shifted - magic;
  const Vec r = (x - whole * splat(0x1.62e42fefa0000p-1)) - whole * splat(0x1.cf79abc9e3b3ap-40);
  // 1/2! + r/3! + ... + r^11/13!, even and odd powers apart: two short chains instead of a long one.
  constexpr double kEven[] = {1.0 / 3628800, 1.0 / 40320, 1.0 / 720, 1.0 / 24, 1.0 / 2};
  constexpr double kOdd[] = {1.0 / 39916800, 1.0 / 362880, 1.0 / 5040, 1.0 / 120, 1.0 / 6};
  const Vec square = r * r;
  Vec even = splat(1.0 / 479001600), odd = splat(1.0 / 6227020800);
  for (int i = 0; i < 5; ++i) {
    even = even * square + splat(kEven[i]);
    odd = odd * square + splat(kOdd[i]);
  }
  const Vec tail = square * (even + r * odd);
  const Vec scale = reinterpret_cast<Vec>((n + 1023) << 52);
  const Vec value = scale * (splat(1.0) + (r + tail));
  return {value, select(n == 0, tail, value - splat(1.0) - x)};
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
