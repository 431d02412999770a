// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/attention/rotary_write_backend.h"

namespace earnest::attention::rotary_write {
namespace {

Status none() {
  return unsupported("rotary_write", "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace

Status run_cuda(const Params&) { return none(); }
Status which_cuda(std::string*) { return none(); }

}  // namespace earnest::attention::rotary_write
