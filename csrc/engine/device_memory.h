// SPDX-License-Identifier: Apache-2.0
// Memory where a model computes: the host's, or a GPU's. Whoever asks for it says where; all other code of
// the engine hands a Device on to the kernels. Work on a GPU stands on its default stream, in order, but for
// what is put on a stream to be captured (decode_graphs.h).
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/common/device.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// Of the GPU that is current for the calling thread (place.h), as everything here; given back from any.
struct Release {
  void operator()(void* memory) const;
};
using DeviceMemory = std::unique_ptr<void, Release>;
Status allocate(const char* op, size_t bytes, DeviceMemory* memory);

// On a GPU, that nobody has taken.
Status free_memory(const char* op, size_t* bytes);

// On a GPU's stream, null: the default one.
Status fill(const char* op, Device device, void* memory, int byte, size_t bytes, void* stream = nullptr);

// Either way, or from place to place. On a GPU after all work before it, for which this waits; what such work
// failed with comes out here.
Status copy(const char* op, Device device, void* to, const void* from, size_t bytes);

}  // namespace earnest::engine
