// SPDX-License-Identifier: Apache-2.0
// Stands where the CUDA back end would be in a build without it.
#include "kernels/logprob/logprob_cuda.h"

namespace earnest::logprob {
namespace {

Status none() { return unsupported("logprob", "device", "cpu (earnest was built without CUDA)", "cuda"); }

}  // namespace

Status which_cuda(const Problem&, std::string*) { return none(); }
size_t workspace_size_cuda(const Forward&) { return 0; }
size_t workspace_size_cuda(const Backward&) { return 0; }
Status run_cuda(const Forward&, void*) { return none(); }
Status run_cuda(const Backward&, void*) { return none(); }

}  // namespace earnest::logprob
