// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/logmel/logmel_cuda.h"

namespace earnest::logmel {

Status unsupported_cuda() {
  return unsupported("logmel", "device", "cpu (earnest was built without CUDA)", "cuda");
}

Status which_cuda(std::string*) { return unsupported_cuda(); }
Status launch_clips(const Clips&) { return unsupported_cuda(); }
Status launch_push(const Push&) { return unsupported_cuda(); }
Status launch_normalize(const Normalization&) { return unsupported_cuda(); }

}  // namespace earnest::logmel
