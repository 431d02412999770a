// SPDX-License-Identifier: Apache-2.0
// A clip as frames see it: reflected at both ends, with zeros appended, whole or as much of it as a stream
// still holds.
#pragma once

#include <cstdint>

#include "kernels/logmel/logmel.h"

namespace earnest::logmel {

struct Signal {
  const float* held;  // samples [first, samples)
  int64_t first = 0;
  int64_t samples = 0;  // that there are so far
  int64_t length = 0;   // with the zeros appended; the clip is reflected about index length - 1

  // Sample i of the reflected clip; i may be any integer.
  float at(int64_t i) const {
    if (length == 1) return held[0];
    const int64_t period = 2 * (length - 1);
    i %= period;
    if (i < 0) i += period;
    if (i >= length) i = period - i;
    return i < samples ? held[i - first] : 0.0f;
  }

  // The 400 samples of frame t: in place where they lie in one piece, else written to scratch.
  const float* frame(int64_t t, float* scratch) const {
    const int64_t start = kHop * t - kWindow / 2;
    if (start >= 0 && start + kWindow <= samples) return held + (start - first);
    for (int j = 0; j < kWindow; ++j) scratch[j] = at(start + j);
    return scratch;
  }
};

inline int64_t appended_zeros(Padding padding) {
  return padding == Padding::kStepAudio ? kStepAudioZeros : 0;
}

}  // namespace earnest::logmel
