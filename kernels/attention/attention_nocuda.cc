// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/attention/attention_cuda.h"

namespace earnest::attention {
namespace {

Status none() { return unsupported("attention", "device", "cpu (earnest was built without CUDA)", "cuda"); }

}  // namespace

Status settle_path(Params*) { return none(); }
size_t workspace_size_cuda(const Params&) { return 0; }
Status forward_cuda(const Params&, const Output&) { return none(); }
size_t backward_workspace_size_cuda(const Params&) { return 0; }
Status backward_cuda(const Params&, const Gradients&) { return none(); }

}  // namespace earnest::attention
