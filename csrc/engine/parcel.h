// SPDX-License-Identifier: Apache-2.0
// Arrays of the host that a pass reads where it computes, sent there in one copy; on the CPU they are read
// where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/engine/arena.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class Parcel {
 public:
  // The array must stay until send(), on the CPU until the pass is over; *there is set by send().
  template <typename T>
  void add(const T* array, int64_t count, const T** there) {
    const auto set = [](void* field, const void* at) {
      *static_cast<const T**>(field) = static_cast<const T*>(at);
    };
    items_.push_back({array, static_cast<size_t>(count) * sizeof(T), there, set});
  }
  template <typename T>
  void add(const std::vector<T>& array, const T** there) {
    add(array.data(), static_cast<int64_t>(array.size()), there);
  }

  // Into memory of the arena's device, taken from it.
  Status send(const char* op, Arena* arena);

 private:
  struct Item {
    const void* array;
    size_t bytes;
    void* field;
    void (*set)(void* field, const void* at);
  };
  std::vector<Item> items_;
};

}  // namespace earnest::engine
