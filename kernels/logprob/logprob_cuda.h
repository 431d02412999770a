// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end. Without CUDA each of these says so.
#pragma once

#include "kernels/logprob/logprob.h"

namespace earnest::logprob {

// The path that would run the problem, which need not have been checked; an error if it asks for one that
// cannot.
Status which_cuda(const Problem& problem, std::string* name);

size_t workspace_size_cuda(const Forward& forward);
size_t workspace_size_cuda(const Backward& backward);

// The problem has been checked.
Status run_cuda(const Forward& forward, void* workspace);
Status run_cuda(const Backward& backward, void* workspace);

}  // namespace earnest::logprob
