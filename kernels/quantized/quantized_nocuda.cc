// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/quantized/quantized_cuda.h"

namespace earnest::quantized {
namespace {

Status none() { return unsupported("quantized", "device", "cpu (earnest was built without CUDA)", "cuda"); }

}  // namespace

Status which_cuda(const Product&, int64_t, std::string*) { return none(); }
size_t workspace_size_cuda(const Product&) { return 0; }
Status run_cuda(const Product&, void*) { return none(); }

}  // namespace earnest::quantized
