// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/attention/paged_backend.h"

namespace earnest::attention::paged {
namespace {

Status none() {
  return unsupported("paged_attention", "device", "cpu (earnest was built without CUDA)", "cuda");
}

}  // namespace

Status run_cuda(const Params&, const Output&, void*) { return none(); }
Status which_cuda(std::string*) { return none(); }

}  // namespace earnest::attention::paged
