// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/parcel.h"

#include <cstring>

#include "csrc/engine/device_memory.h"

namespace earnest::engine {

Status Parcel::send(const char* op, Arena* arena) {
  constexpr size_t kAlignment = 16;  // which kernels on a GPU want for arrays of numbers
  const auto whole = [](size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  if (arena->device() == Device::kCpu) {
    for (const Item& item : items_) item.set(item.field, item.array);
    return {};
  }
  size_t total = 0;
  for (const Item& item : items_) total += whole(item.bytes);
  std::vector<char> packed(total);
  char* const there = arena->take<char>(static_cast<int64_t>(total));
  size_t next = 0;
  for (const Item& item : items_) {
    if (item.bytes > 0) std::memcpy(packed.data() + next, item.array, item.bytes);
    item.set(item.field, there + next);
    next += whole(item.bytes);
  }
  return copy(op, arena->device(), there, packed.data(), total);
}

}  // namespace earnest::engine
