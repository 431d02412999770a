// SPDX-License-Identifier: Apache-2.0
// hopper_products.h in the emulator.
#pragma once

#include "kernels/common/hopper_builtins.h"

namespace earnest::hopper {

inline void begin_products(Site site = Site::current()) { simt::emulator::begin_products(site); }
inline void close_products(Site site = Site::current()) { simt::emulator::close_products(site); }
template <int kGroupsLeft>
void wait_products(Site site = Site::current()) {
  simt::emulator::wait_for_products(kGroupsLeft, site);
}
template <int J>
void settle(float (&)[J][4]) {}  // the host's compiler is told by the call of the wait
template <int K, int N>
void keep(const uint32_t (&)[K][N]) {}

template <typename Half>
float widen_bits(uint16_t bits) {
  return widen(Half{bits});
}

template <typename Half>
void multiply_64x64x16(float (&d)[8][4], uint64_t a, uint64_t b, Half, Site site = Site::current()) {
  simt::emulator::multiply("multiply_64x64x16", {d[0], 32}, {nullptr, a, false}, {b, false},
                           &widen_bits<Half>, site);
}
template <bool kATransposed, bool kBTransposed>
void multiply_64x256x16(float (&d)[32][4], uint64_t a, uint64_t b, Site site = Site::current()) {
  simt::emulator::multiply("multiply_64x256x16", {d[0], 128}, {nullptr, a, kATransposed}, {b, kBTransposed},
                           &widen_bits<BFloat16>, site);
}
template <int J, typename Half>
void multiply_by(float (&d)[J][4], const uint32_t (&a)[4], uint64_t b, Half, Site site = Site::current()) {
  static_assert(J == 8 || J == 16);
  simt::emulator::multiply("multiply_by", {d[0], 4 * J}, {a, 0, false}, {b, true}, &widen_bits<Half>, site);
}
template <int J, typename Half>
void multiply_rows(float (&d)[J][4], const uint32_t (&a)[4], uint64_t b, Half, bool adds,
                   Site site = Site::current()) {
  static_assert(J == 8 || J == 16);
  for (int i = 0; !adds && i < 4 * J; ++i) d[i / 4][i % 4] = 0;
  simt::emulator::multiply("multiply_rows", {d[0], 4 * J}, {a, 0, false}, {b, false}, &widen_bits<Half>,
                           site);
}

}  // namespace earnest::hopper
