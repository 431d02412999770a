// SPDX-License-Identifier: Apache-2.0
// Syllable nuclei, from which speaking rate is estimated, by the rule of de Jong and Wempe (2009, "Praat
// script to detect syllable nuclei and measure speech rate automatically", Behavior Research Methods 41): a
// nucleus is a voiced peak of the intensity in dB with a dip of at least 2 dB before it, loud enough for the
// clip.
#pragma once

#include <cstdint>

#include "kernels/common/status.h"

namespace earnest::pitch {

struct Speech {
  int64_t nuclei = 0;
  double seconds = 0.0;  // of speaking: from the first to the last loud frame, less pauses
};

// energy, f0 [frames] as of pitch.h, of a whole clip or of as much as is there; at [frames] receives the
// frames of the nuclei, and may be null.
Status find_nuclei(const float* energy, const float* f0, int64_t frames, int64_t* at, Speech* speech);

}  // namespace earnest::pitch
