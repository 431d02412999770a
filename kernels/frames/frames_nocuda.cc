// SPDX-License-Identifier: Apache-2.0
// What this family answers when asked for a GPU in a build without CUDA.
#include "kernels/frames/frames_tier.h"

namespace earnest::frames {

Status check_device(Device device) {
  if (device == Device::kCpu) return {};
  return unsupported("frames", "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace earnest::frames
