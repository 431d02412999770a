// SPDX-License-Identifier: Apache-2.0
#include "kernels/pitch/checks.h"

#include <algorithm>
#include <cmath>

namespace earnest::pitch {

Status check(const Settings& settings) {
  const float low = settings.f0_min, high = settings.f0_max;
  if (!(low >= 20.0f && low < high && high <= 2000.0f)) {
    const std::string got = std::to_string(low) + ", " + std::to_string(high);
    return invalid_argument("pitch", "f0_min, f0_max", "20 <= f0_min < f0_max <= 2000 Hz", got);
  }
  const auto within = [](float value) { return value >= 0.0f && value <= 1.0f; };
  if (!within(settings.voicing_threshold)) {
    return invalid_argument("pitch", "voicing_threshold", "0 to 1",
                            std::to_string(settings.voicing_threshold));
  }
  if (!within(settings.silence_threshold)) {
    return invalid_argument("pitch", "silence_threshold", "0 to 1",
                            std::to_string(settings.silence_threshold));
  }
  return {};
}

Status check(const Params& params) {
  if (Status status = check(params.settings); !status.ok()) return status;
  if (params.samples == 0) return invalid_argument("pitch", "pcm", "at least one sample", "none");
  if (Status status = check_count(params.samples, 0); !status.ok()) return status;
  const bool no_memory = params.f0 == nullptr || params.voicing == nullptr || params.energy == nullptr;
  if (frame_count(params.samples) > 0 && no_memory) {
    return invalid_argument("pitch", "out", "memory for the frames", "a null pointer");
  }
  return {};
}

Status check_count(int64_t samples, int64_t before) {
  if (samples <= kMaxSamples - before) return {};
  return invalid_argument("pitch", "pcm", "at most 2^40 samples in all",
                          std::to_string(samples) + " after " + std::to_string(before));
}

Status bad_sample(const float* pcm, int64_t samples, int64_t before) {
  const float* wrong =
      std::find_if(pcm, pcm + samples, [](float x) { return !(std::abs(x) <= kMaxMagnitude); });
  const std::string place = " at sample " + std::to_string(before + (wrong - pcm));
  const std::string value = std::isnan(*wrong) ? "nan" : std::isinf(*wrong) ? "inf" : std::to_string(*wrong);
  return invalid_argument("pitch", "pcm", "finite samples of magnitude at most 1e15", value + place);
}

Status out_of_memory() { return {StatusCode::kOutOfMemory, "[pitch] memory: expected some left, got none"}; }

}  // namespace earnest::pitch
