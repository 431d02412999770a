// SPDX-License-Identifier: Apache-2.0
// A convolution with three taps as a product: each output's window of frames, side by side in one row.
#pragma once

#include <cstdint>
#include <vector>

namespace earnest::engine {

// Of `count` frames those that make the windows of `outputs`, [outputs, 3] for gather_rows.h: stride * i - 1
// + {0, 1, 2}, and -1 (zeros) outside.
inline std::vector<int64_t> windows_of(int64_t count, int64_t stride, int64_t outputs) {
  std::vector<int64_t> index;
  index.reserve(static_cast<size_t>(3 * outputs));
  for (int64_t i = 0; i < outputs; ++i) {
    for (int64_t tap = 0; tap < 3; ++tap) {
      const int64_t at = stride * i - 1 + tap;
      index.push_back(at < count ? at : -1);
    }
  }
  return index;
}

}  // namespace earnest::engine
