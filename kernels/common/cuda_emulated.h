// SPDX-License-Identifier: Apache-2.0
// What tests set of the emulated device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/common/status.h"

namespace earnest::cuda::emulated {

// How much memory the device has from now on, what is taken already included. At first more than any host's.
void set_memory(size_t bytes);
size_t memory_taken();

// How many devices there are, at first 1: each with memory of its own of which set_memory and memory_taken
// speak together. What a GPU would do elsewhere than meant, or refuse, is an error here: work on a stream, a
// graph or (but by kernels, whose arguments nobody can look into) memory of a device that is not current.
void set_devices(int count);
// What one of them has been given: work, questions included, and memory that is still taken.
struct Given {
  int64_t work = 0;
  size_t bytes = 0;
};
Given given(int device);

// The allocation after so many more fails, once; -1: none does.
void fail_allocation_after(int count);

// The launch of a graph after so many more is refused, once; the copy from the device after so many more
// brings zeros, once, as no word of faults may be. -1: none.
void fail_graph_after(int count);
void spoil_copy_after(int count);

// Work of somebody else's library on the stream, such as a kernel's: kept where that is captured.
Status put(const char* op, void* stream, std::function<void()> work);

// Whether the device can capture: one that cannot says so when asked to.
void set_captures(bool can);

}  // namespace earnest::cuda::emulated
