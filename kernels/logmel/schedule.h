// SPDX-License-Identifier: Apache-2.0
// Which block of the one launch over a batch of clips does what: a *tile* of 32 frames, or, once all tiles of
// a clip are done and its maximum is known, a *part* of its normalising. Work is handed out by ticket, in the
// order in which blocks begin. A tile waits for nobody, and a part's ticket comes after those of all its
// clip's tiles, so whoever a part waits for has begun: nothing can lock up, however many blocks run at a
// time.
//
//   step 0: tiles of clip 0;   ...   step s: tiles of clip s, then parts of clip s - lag;   ...
//
// With a lag the tiles that a part waits for are mostly done when its turn comes, and what it reads again is
// still in the L2 cache, which a whole batch would overflow.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest::logmel {

constexpr int kFramesOfTile = 32, kTilesOfPart = 4;

struct Schedule {
  int64_t clips = 0;
  const int64_t* cu_frames = nullptr;  // [clips + 1]; null: frames_each
  int64_t frames_each = 0;
  int64_t tiles = 0;  // of all clips
  int64_t lag = 0;    // 0: there are no parts

  // Sums over the clips before clip c. Tiles by offsets: floor(b / 32) + 1 - floor(a / 32) of them hold the b
  // - a frames of a clip, at most one in vain, and nobody has to count them first. A clip has one at least.
  EARNEST_HOST_DEVICE int64_t tiles_before(int64_t c) const {
    if (cu_frames != nullptr) return cu_frames[c] / kFramesOfTile + c;
    return c * (frames_each / kFramesOfTile + 1);
  }
  EARNEST_HOST_DEVICE int64_t tiles_of(int64_t c) const {
    return (c + 1 == clips ? tiles : tiles_before(c + 1)) - tiles_before(c);
  }
  EARNEST_HOST_DEVICE int64_t parts_before(int64_t c) const {
    return (c == clips ? tiles : tiles_before(c)) / kTilesOfPart + c;
  }

  EARNEST_HOST_DEVICE int64_t steps() const { return clips + lag; }
  // The first ticket of a step, 0 to steps().
  EARNEST_HOST_DEVICE int64_t begin(int64_t step) const {
    const int64_t before = step >= clips ? tiles : tiles_before(step);
    return lag == 0 || step <= lag ? before : before + parts_before(step - lag);
  }
  EARNEST_HOST_DEVICE int64_t tickets() const { return begin(steps()); }
};

// Of `frames` in all. `resident` blocks run at a time: so many tiles lie between a clip's and its parts.
inline Schedule schedule_of(int64_t clips, const int64_t* cu_frames, int64_t frames, bool normalized,
                            int64_t resident) {
  Schedule schedule;
  schedule.clips = clips;
  schedule.cu_frames = cu_frames;
  schedule.frames_each = clips > 0 ? frames / clips : 0;
  schedule.tiles = cu_frames != nullptr ? frames / kFramesOfTile + clips : schedule.tiles_before(clips);
  if (normalized && clips > 0) {
    schedule.lag = std::clamp<int64_t>((resident * clips + schedule.tiles - 1) / schedule.tiles, 1, clips);
  }
  return schedule;
}

}  // namespace earnest::logmel
