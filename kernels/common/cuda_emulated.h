// SPDX-License-Identifier: Apache-2.0
// What tests set of the emulated device.
#pragma once

#include <cstddef>

namespace earnest::cuda::emulated {

// How much memory the device has from now on, what is taken already included. At first more than any host's.
void set_memory(size_t bytes);
size_t memory_taken();

// The allocation after so many more fails, once; -1: none does.
void fail_allocation_after(int count);

// Whether the device can capture: one that cannot says so when asked to.
void set_captures(bool can);

}  // namespace earnest::cuda::emulated
