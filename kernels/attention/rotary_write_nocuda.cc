// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/attention/rotary_write_backend.h"

namespace earnest::attention::rotary_write {

Status run_cuda(const Params&) {
  return unsupported("rotary_write", "device", "a build with CUDA (this is one without)", "cuda");
}

}  // namespace earnest::attention::rotary_write
