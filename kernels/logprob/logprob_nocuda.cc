// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/logprob/logprob_backend.h"

namespace earnest::logprob {

Status unsupported_cuda() {
  return unsupported("logprob", "device", "cpu (this is built without CUDA)", "cuda");
}

}  // namespace earnest::logprob
