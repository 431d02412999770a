// SPDX-License-Identifier: Apache-2.0
// RIFF WAVE from bytes that may be hostile: integer PCM of 8, 16, 24 and 32 bits, float of 32 and 64, plain
// or extensible, mixed down to one channel (the mean). Headers are believed only as far as there are bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/status.h"

namespace earnest::engine {

constexpr int kMostChannels = 64;

struct Wav {
  int64_t rate = 0;
  std::vector<float> samples;  // mono; integers scaled to [-1, 1). May be empty: clients send such parts.
};

// most_seconds: longer clips are refused before their samples are touched.
Status read_wav(std::span<const std::byte> bytes, double most_seconds, Wav* wav);

}  // namespace earnest::engine
