// SPDX-License-Identifier: Apache-2.0
// What hopper_turns.h means in the emulator.
#pragma once

namespace earnest::simt::emulator {

void bring_bytes(void* to, const void* from, int bytes, void* barrier);
void take_bytes(void* to, const void* from, int bytes, bool adds);
void close_copies();
void wait_for_copies_out(bool written);
void check_written();  // that the calling thread has waited for its copies

}  // namespace earnest::simt::emulator
