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

  // Raw features of `lanes` frames, of which the first `count` go to column 0 .. count - 1 of out (row stride
  // in floats). samples are those of all `lanes` frames in one piece, 160 (lanes - 1) + 400, or of half as
  // many frames where count is no more than that.
  void (*tile)(const Tables& tables, const float* samples, int count, float* out, int64_t stride);

  // The same numbers, bit for bit, of the one frame of samples[0 .. 400), to column 0 of out.
  void (*one_frame)(const Tables& tables, const float* samples, float* out, int64_t stride);

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
