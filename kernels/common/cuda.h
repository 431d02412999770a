// SPDX-License-Identifier: Apache-2.0
// The device of Device::kCuda: the current GPU of the calling thread, or in an EMULATED build the emulator,
// whose memory is the host's. No header of CUDA is needed. `op` is who asks, for messages.
//
// In contracts a stream is a void*: a cudaStream_t, null for the default one. A call with Device::kCuda only
// puts work on the stream; it allocates nothing and waits for nothing, so that it can be captured in a graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/status.h"

namespace earnest::cuda {

struct Properties {
  int major = 0, minor = 0;  // compute capability: 9, 0
  int multiprocessors = 0;
  int64_t shared_bytes = 0;  // that a block may ask for
  int index = 0;             // which of the machine's devices
  bool runs_sm90a = false;   // what is compiled for 9.0 alone; the emulator, an 8.0 otherwise, does by name
};

// Of the current device; asked for once per device.
Status properties(const char* op, Properties* found);

// The calling thread's, at first 0, and how many there are.
Status device_count(const char* op, int* count);
Status current_device(const char* op, int* index);
Status set_device(const char* op, int index);

// On the stream:
Status fill(const char* op, void* memory, int byte, size_t bytes, void* stream);

// What is put on a captured stream is not done but kept, with its arguments as they are then; each launch of
// the graph does it again, on the stream that it is given. Until the end the calling thread may put work
// nowhere else, allocate nothing and wait for nothing; end_capture says so, and gives no graph. A stream made
// here waits for no other, and is there to be captured.
Status create_stream(const char* op, void** stream);
void destroy_stream(void* stream);
Status begin_capture(const char* op, void* stream);
Status end_capture(const char* op, void* stream, void** graph);
Status launch_graph(const char* op, void* graph, void* stream);
void destroy_graph(void* graph);

// Of the current device, that nobody has taken.
Status free_memory(const char* op, size_t* bytes);

// For tests, benchmarks and callers that read a result: these wait, or allocate.
Status allocate(const char* op, size_t bytes, void** memory);
void release(void* memory);
Status copy(const char* op, void* to, const void* from, size_t bytes, void* stream);  // either way; waits
Status synchronize(const char* op, void* stream);

}  // namespace earnest::cuda
