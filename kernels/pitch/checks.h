// SPDX-License-Identifier: Apache-2.0
// What a caller can get wrong, in one sentence each.
#pragma once

#include "kernels/pitch/pitch.h"

namespace earnest::pitch {

Status check(const Settings& settings);
Status check(const Params& params);  // all but the samples' values

// How many samples there may be; `before` samples of the same stream came earlier.
Status check_count(int64_t samples, int64_t before);

// The sentence about the first sample that is out of range; `before` samples of the same stream came earlier.
Status bad_sample(const float* pcm, int64_t samples, int64_t before);

Status out_of_memory();

}  // namespace earnest::pitch
