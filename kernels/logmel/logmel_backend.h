// SPDX-License-Identifier: Apache-2.0
// What logmel.cc needs of one instruction set. Each back end is logmel_tile.h compiled with its own flags.
#pragma once

#include <cstdint>

#include "kernels/logmel/tables.h"

namespace earnest::logmel {

constexpr int kMaxLanes = 16;
constexpr int32_t kMaxMagnitudeBits = 0x58635fa9;  // of kMaxMagnitude, 1e15f

struct Backend {
  int lanes;  // frames computed side by side, one in each SIMD lane

  // Raw features of frames[0 .. lanes), 400 samples each, of which the first `count` go to column 0 .. count
  // - 1 of out (row stride in floats).
  void (*tile)(const Tables& tables, const float* const* frames, int count, float* out, int64_t stride);

  // Whether every sample is finite and at most kMaxMagnitude.
  bool (*in_range)(const float* samples, int64_t count);

  // normalize of logmel.h; count >= 1.
  void (*normalize)(const float* raw, int64_t count, float* out);
};

namespace scalar {
extern const Backend kBackend;
}
namespace avx2 {
extern const Backend kBackend;
}
namespace avx512 {
extern const Backend kBackend;
}

}  // namespace earnest::logmel
