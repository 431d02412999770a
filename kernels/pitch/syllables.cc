// SPDX-License-Identifier: Apache-2.0
#include "kernels/pitch/syllables.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

namespace earnest::pitch {
namespace {

constexpr float kRangeDb = 25.0f;     // below the loud frames: what is quieter is no speech
constexpr float kDipDb = 2.0f;        // between two nuclei
constexpr double kLoudPart = 0.99;    // of the frames are quieter than a "loud" one: clicks do not count
constexpr int64_t kPauseFrames = 15;  // silences up to this long belong to speaking (closures of stops)
constexpr std::array<float, 4> kSmooth = {0.25f, 0.2133884f, 0.125f, 0.0366116f};  // Hann's window, 80 ms

// Level in dB, smoothed so that a low voice's single pulses make no peaks.
std::vector<float> intensity(const float* energy, int64_t frames) {
  std::vector<float> level(static_cast<size_t>(frames));
  for (int64_t t = 0; t < frames; ++t) {
    float sum = kSmooth[0] * energy[t];
    for (int64_t far = 1; far < 4; ++far) {
      const float before = energy[std::max<int64_t>(t - far, 0)];
      const float after = energy[std::min(t + far, frames - 1)];
      sum += kSmooth[static_cast<size_t>(far)] * (before + after);
    }
    level[static_cast<size_t>(t)] = 10.0f * std::log10(std::max(sum, 1e-30f));
  }
  return level;
}

double seconds_of(const std::vector<float>& level, float threshold) {
  int64_t last = -1, frames = 0;
  for (size_t t = 0; t < level.size(); ++t) {
    if (level[t] <= threshold) continue;
    const int64_t gap = last < 0 ? 1 : static_cast<int64_t>(t) - last;
    frames += gap <= kPauseFrames ? gap : 1;
    last = static_cast<int64_t>(t);
  }
  return static_cast<double>(frames) / 100.0;
}

}  // namespace

Status find_nuclei(const float* energy, const float* f0, int64_t frames, int64_t* at, Speech* speech) {
  if (frames < 0 || (frames > 0 && (energy == nullptr || f0 == nullptr))) {
    return invalid_argument("pitch", "energy", "frames", "a null pointer or a negative number of them");
  }
  *speech = {};
  if (frames == 0) return {};
  try {
    const std::vector<float> level = intensity(energy, frames);
    std::vector<float> sorted = level;
    const auto loud = sorted.begin() + static_cast<int64_t>(kLoudPart * static_cast<double>(frames - 1));
    std::nth_element(sorted.begin(), loud, sorted.end());
    if (*loud < -250.0f) return {};  // digital silence
    const float threshold = *loud - kRangeDb;
    // A peak waits for the dip behind it; a higher one before that dip takes its place.
    float dip = -std::numeric_limits<float>::infinity(), peak = dip;
    int64_t peak_at = -1;
    const auto end_peak = [&] {
      if (peak_at >= 0 && f0[peak_at] > 0.0f) {
        if (at != nullptr) at[speech->nuclei] = peak_at;
        ++speech->nuclei;
      }
      peak_at = -1;
    };
    for (int64_t t = 0; t < frames; ++t) {
      const float here = level[static_cast<size_t>(t)];
      if (peak_at >= 0) {
        if (here > peak) {
          peak = here;
          peak_at = t;
        } else if (here < peak - kDipDb) {
          end_peak();
          dip = here;
        }
      } else if (here < dip) {
        dip = here;
      } else if (here > threshold && here >= dip + kDipDb) {
        peak = here;
        peak_at = t;
      }
    }
    end_peak();
    speech->seconds = seconds_of(level, threshold);
  } catch (const std::bad_alloc&) {
    return {StatusCode::kOutOfMemory, "[pitch] memory: expected some left, got none"};
  }
  return {};
}

}  // namespace earnest::pitch
