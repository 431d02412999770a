// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/rowwise/gather.h"

namespace earnest::rowwise {

Status gather_cuda(const Gather&) {
  return unsupported("gather", "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace earnest::rowwise
