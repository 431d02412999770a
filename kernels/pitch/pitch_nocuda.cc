// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/pitch/pitch_cuda.h"

namespace earnest::pitch {

Status unsupported_cuda() {
  return unsupported("pitch", "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace earnest::pitch
