// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/sampling/draws.h"

namespace earnest::sampling {

Status draw_on_device(const Draws&, void*) {
  return unsupported("generate", "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace earnest::sampling
