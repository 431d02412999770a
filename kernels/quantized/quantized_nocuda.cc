// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/quantized/quantized_backend.h"

namespace earnest::quantized {

Status unsupported_cuda() {
  return unsupported("quantized", "device", "cpu (this is built without CUDA)", "cuda");
}

}  // namespace earnest::quantized
