// SPDX-License-Identifier: Apache-2.0
// A convolution with three taps as a product: each output's window of frames, side by side in one row.
#pragma once

#include <cstdint>
#include <cstring>

namespace earnest::engine {

// frames [count, width] -> windows [outputs, 3 width]: those at stride * i - 1 + {0, 1, 2}, zeros outside.
template <typename T>
void gather_windows(const T* frames, int64_t count, int64_t width, int64_t stride, int64_t outputs,
                    T* windows) {
  const size_t bytes = static_cast<size_t>(width) * sizeof(T);
  for (int64_t i = 0; i < outputs; ++i) {
    for (int64_t tap = 0; tap < 3; ++tap, windows += width) {
      const int64_t at = stride * i - 1 + tap;
      if (at >= 0 && at < count) {
        std::memcpy(windows, frames + at * width, bytes);
      } else {
        std::memset(windows, 0, bytes);
      }
    }
  }
}

}  // namespace earnest::engine
