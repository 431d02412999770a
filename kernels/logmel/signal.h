// SPDX-License-Identifier: Apache-2.0
// A clip as frames see it: reflected at both ends, with zeros appended, whole or as much of it as a stream
// still holds.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/host_device.h"
#include "kernels/logmel/logmel.h"

namespace earnest::logmel {

// Where index i of the reflected signal lies in the signal itself, of at least one sample.
EARNEST_HOST_DEVICE inline int64_t reflected(int64_t i, int64_t length) {
  if (length == 1) return 0;
  const int64_t period = 2 * (length - 1);
  i %= period;
  if (i < 0) i += period;
  return i < length ? i : period - i;
}

struct Signal {
  const float* held;  // samples [first, samples)
  int64_t first = 0;
  int64_t samples = 0;  // that there are so far
  int64_t length = 0;   // with the zeros appended; the clip is reflected about index length - 1

  // Sample i of the reflected clip; i may be any integer.
  EARNEST_HOST_DEVICE float at(int64_t i) const {
    i = reflected(i, length);
    return i < samples ? held[i - first] : 0.0f;
  }

  // The samples of frames t .. t + count - 1 in one piece, as many as `room` >= count frames have (what lies
  // past those of `count` is of no account): in place where there are so many, else written to scratch.
  const float* frames(int64_t t, int count, int room, float* scratch) const {
    const int64_t start = kHop * t - kWindow / 2;
    const int64_t all = kHop * (room - 1) + kWindow, needed = kHop * (count - 1) + kWindow;
    if (start >= 0 && start + all <= samples) return held + (start - first);
    const int64_t begin = std::clamp<int64_t>(-start, 0, needed);  // scratch[begin .. end) lie in the clip
    const int64_t end = std::clamp<int64_t>(samples - start, begin, needed);
    for (int64_t j = 0; j < begin; ++j) scratch[j] = at(start + j);
    std::copy(held + (start + begin - first), held + (start + end - first), scratch + begin);
    for (int64_t j = end; j < needed; ++j) scratch[j] = at(start + j);
    std::fill(scratch + needed, scratch + all, 0.0f);
    return scratch;
  }
};

EARNEST_HOST_DEVICE inline int64_t appended_zeros(Padding padding) {
  return padding == Padding::kStepAudio ? kStepAudioZeros : 0;
}

// frame_count: a sum that no number of samples overflows.
EARNEST_HOST_DEVICE inline int64_t frames_in(int64_t samples, Padding padding) {
  return samples / kHop + (samples % kHop + appended_zeros(padding)) / kHop;
}

// Frames that no later sample can change, of a stream that has had so many. The left half of the first is
// reflected and needs sample 200 as well.
EARNEST_HOST_DEVICE inline int64_t whole_frames(int64_t samples) {
  return samples <= kWindow / 2 ? 0 : (samples - kWindow / 2) / kHop + 1;
}

}  // namespace earnest::logmel
