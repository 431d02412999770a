// SPDX-License-Identifier: Apache-2.0
// Vectors of doubles as wide as the tier's registers (GCC and Clang vector extensions), with float or double
// in memory. Included once per tier, inside that tier's own namespace, so that no copy built for a newer
// machine can be linked into the code for an older one. The includer defines EARNEST_PPO_TIER and
// EARNEST_PPO_BYTES.
#pragma once

#include <cstdint>
#include <cstring>

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross no boundary between differently compiled files

namespace earnest::ppo::EARNEST_PPO_TIER {
namespace {

constexpr int kLanes = EARNEST_PPO_BYTES / 8;

typedef double Vec __attribute__((vector_size(kLanes * 8)));
typedef int64_t Mask __attribute__((vector_size(kLanes * 8)));  // each lane 0 or -1
typedef uint64_t Bits __attribute__((vector_size(kLanes * 8)));
typedef float VecFloat __attribute__((vector_size(kLanes * 4)));
typedef uint8_t VecByte __attribute__((vector_size(kLanes)));

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
inline Mask load_mask(const uint8_t* p, int n) {
  VecByte x{};
  if (n == kLanes)
    std::memcpy(&x, p, sizeof(x));
  else
    std::memcpy(&x, p, n);
  return __builtin_convertvector(x, Mask) != 0;
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
  constexpr double kInverseFactorials[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                           1.0 / 40320,     1.0 / 5040,     1.0 / 720,     1.0 / 120,
                                           1.0 / 24,        1.0 / 6,        1.0 / 2};
  Vec series = splat(1.0 / 6227020800);
  for (double coefficient : kInverseFactorials) series = series * r + splat(coefficient);
  const Vec tail = r * r * series;
  const Vec scale = reinterpret_cast<Vec>((n + 1023) << 52);
  const Vec value = scale * (splat(1.0) + (r + tail));
  return {value, select(n == 0, tail, value - splat(1.0) - x)};
}

}  // namespace
}  // namespace earnest::ppo::EARNEST_PPO_TIER
