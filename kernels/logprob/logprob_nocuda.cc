// SPDX-License-Identifier: Apache-2.0
#include "kernels/logprob/logprob.h"

namespace earnest::logprob {

Status which_cuda(std::string*) {
  return unsupported("logprob", "device", "cpu",
                     "cuda, but this build has no CUDA (built without EARNEST_CUDA)");
}

}  // namespace earnest::logprob
