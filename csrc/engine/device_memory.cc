// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/device_memory.h"

#include <cstring>

#include "csrc/engine/guard.h"
#include "kernels/common/cuda.h"

namespace earnest::engine {

void Release::operator()(void* memory) const { cuda::release(memory); }

Status allocate(const char* op, size_t bytes, DeviceMemory* memory) {
  void* taken = nullptr;
  EARNEST_RETURN_IF_ERROR(cuda::allocate(op, bytes, &taken));
  memory->reset(taken);
  return {};
}

Status free_memory(const char* op, size_t* bytes) { return cuda::free_memory(op, bytes); }

Status fill(const char* op, Device device, void* memory, int byte, size_t bytes, void* stream) {
  if (bytes == 0) return {};
  if (device == Device::kCuda) return cuda::fill(op, memory, byte, bytes, stream);
  std::memset(memory, byte, bytes);
  return {};
}

Status copy(const char* op, Device device, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return {};
  if (device == Device::kCuda) return cuda::copy(op, to, from, bytes, nullptr);
  std::memcpy(to, from, bytes);
  return {};
}

}  // namespace earnest::engine
