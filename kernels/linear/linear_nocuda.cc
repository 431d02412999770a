// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/linear/linear_cuda.h"

namespace earnest::linear {
namespace {

Status none() { return unsupported("linear", "device", "cpu (earnest was built without CUDA)", "cuda"); }

}  // namespace

Status which_cuda(const Product&, std::string*) { return none(); }
Status find_vendor(const char*, const char*, const char*) { return none(); }
size_t workspace_size_cuda(const Product&) { return 0; }
Status run_cuda(const Product&, void*) { return none(); }

}  // namespace earnest::linear
