// SPDX-License-Identifier: Apache-2.0
// Arrays that go in and out of memory which the caller has.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "csrc/capi/call.h"

namespace earnest::capi {

// Sets *count to `size`, and copies where there is room.
template <typename T>
Outcome copy_out(const char* op, const T* made, size_t size, T* out, size_t capacity, size_t* count) {
  *count = size;
  if (size > capacity) {
    return invalid(op, "capacity", std::to_string(size) + " or more", std::to_string(capacity));
  }
  if (size > 0) {
    EARNEST_RETURN_IF_FAILED(required(op, "array", out));
    std::copy_n(made, size, out);
  }
  return {};
}

// Whether so many elements can be in memory at all.
inline Outcome check_count(const char* op, const char* argument, size_t count, size_t element) {
  const size_t most = static_cast<size_t>(PTRDIFF_MAX) / element;
  return count <= most ? Outcome()
                       : invalid(op, argument, "at most " + std::to_string(most), std::to_string(count));
}

inline uint32_t narrow(int64_t count) {
  return static_cast<uint32_t>(std::clamp<int64_t>(count, 0, UINT32_MAX));
}

}  // namespace earnest::capi
