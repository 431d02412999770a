// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/linear/linear_backend.h"

namespace earnest::linear {

Status unsupported_cuda() {
  return unsupported("linear", "device", "cpu (this is built without CUDA)", "cuda");
}

}  // namespace earnest::linear
