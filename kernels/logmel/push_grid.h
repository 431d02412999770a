// SPDX-License-Identifier: Apache-2.0
// Which blocks one step of many streams takes: x: four streams each, y: every y-th eight frames of them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace earnest::logmel {

constexpr int kStreamsOfBlock = 4, kFramesOfStream = 8;  // side by side in the 32 lanes

struct PushGrid {
  int64_t x, y;
};

// Enough blocks for the stream with the most frames, but in y no more than run at a time: the others would
// mostly have nothing to do, where one stream catches up and the rest do not.
inline PushGrid push_grid(int64_t streams, int64_t most_frames, int64_t resident) {
  const int64_t x = (streams + kStreamsOfBlock - 1) / kStreamsOfBlock;
  const int64_t turns = (most_frames + kFramesOfStream - 1) / kFramesOfStream;
  return {x, std::clamp<int64_t>(std::min(turns, resident / std::max<int64_t>(x, 1)), 1, 65535)};
}

}  // namespace earnest::logmel
