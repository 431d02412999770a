// SPDX-License-Identifier: Apache-2.0
// hopper_turns.h in the emulator. Copies out of shared memory happen at once, or as late as the waits allow.
#pragma once

#include "kernels/common/hopper_products.h"
#include "kernels/common/hopper_turns_emulator.h"

namespace earnest::hopper {

inline void load_bytes(void* to, const void* from, int bytes, Barrier* barrier) {
  simt::emulator::bring_bytes(to, from, bytes, barrier);
}
inline void store_bytes(void* to, const void* from, int bytes) {
  simt::emulator::take_bytes(to, from, bytes, false);
}
inline void add_floats(float* to, const void* from, int bytes) {
  simt::emulator::take_bytes(to, from, bytes, true);
}
inline void close_copies() { simt::emulator::close_copies(); }
inline void wait_read() { simt::emulator::wait_for_copies_out(false); }
inline void wait_written() { simt::emulator::wait_for_copies_out(true); }

inline void wait_turn(const uint32_t* turns, uint32_t turn) {
  while (simt::load_acquire(turns) < turn) simt::pause();
}
inline void pass_turn(uint32_t* turns) {
  simt::emulator::check_written();
  __threadfence();
  atomicAdd(turns, 1u);
}

template <typename Half>
void multiply_transposed(float (&d)[8][4], uint64_t a, uint64_t b, Half, Site site = Site::current()) {
  simt::emulator::multiply("multiply_transposed", {d[0], 32}, {nullptr, a, true}, {b, true},
                           &widen_bits<Half>, site);
}

}  // namespace earnest::hopper
