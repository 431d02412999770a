// SPDX-License-Identifier: Apache-2.0
// What pitch.cc needs of one instruction set. Each back end is pitch_tile.h compiled with its own flags.
#pragma once

#include <cstdint>

#include "kernels/pitch/tables.h"

namespace earnest::pitch {

constexpr int kMaxLanes = 16;
constexpr int32_t kMaxMagnitudeBits = 0x58635fa9;  // of kMaxMagnitude, 1e15f

// The best periods of a frame, best first; f0 is 0 where there are no more.
struct Candidates {
  float strength[kKept];
  float f0[kKept];
  float voicing;
  float energy;
};

struct Backend {
  // out[m] = the filtered sample at raw[2 m + kReach], for m < count rounded up to a multiple of kMaxLanes;
  // that many are written and twice as many + 2 kReach + 2 kMaxLanes read.
  void (*halve)(const Tables& tables, const float* raw, int64_t count, float* out);

  // What a frame's `width` samples of 8 kHz, of which [first, last) are the clip's and the others 0, say
  // about its period; energy is that of the `raw_count` samples of 16 kHz at raw.
  void (*frame)(const Tables& tables, const float* samples, int first, int last, const float* raw,
                int raw_count, Candidates* out);

  // Whether every sample is finite and at most kMaxMagnitude.
  bool (*in_range)(const float* samples, int64_t count);
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

}  // namespace earnest::pitch
