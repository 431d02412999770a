// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end: launches of calls that logmel_batch.cc has checked.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/common/status.h"
#include "kernels/logmel/logmel_batch.h"

namespace earnest::logmel {

Status which_cuda(std::string* name);
Status unsupported_cuda();  // what the calls of logmel.h, which are the CPU's, answer

Status launch_clips(const Clips& clips);
Status launch_push(const Push& push);
Status launch_normalize(const Normalization& normalization);

// A stream on the device. All zeros: new.
struct StreamState {
  static constexpr int kHeld = kWindow;
  int64_t pushed;   // samples so far
  uint32_t ended;   // its last chunk has come
  uint32_t blocks;  // of the step under way that are done with it, and whether they refuse the chunk
  uint32_t refused;
  uint32_t unused;
  float held[kHeld];  // the last samples: held[i] is sample pushed - kHeld + i, where there is one
};

// Arguments of the fault word. The index is that of the sample in pcm, or of the clip or stream.
enum class SampleFault : int { kNan = 1, kInf, kLarge, kOffsets, kEnded, kEmpty };

}  // namespace earnest::logmel
