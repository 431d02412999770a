// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/attention/attention_backend.h"

namespace earnest::attention {

Status unsupported_cuda() {
  return unsupported("attention", "device", "cpu (this is built without CUDA)", "cuda");
}

}  // namespace earnest::attention
