// SPDX-License-Identifier: Apache-2.0
// What this family answers when asked for a GPU in a build without CUDA.
#include "kernels/ppo/tiers.h"

namespace earnest::ppo {

Status check_device(const char* op, Device device) {
  if (device == Device::kCpu) return {};
  return unsupported(op, "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace earnest::ppo
