// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end. Without CUDA each of these says so.
#pragma once

#include "kernels/attention/attention.h"

namespace earnest::attention {

Status which_cuda(Type type, int64_t dim, std::string* name);

// The parameters have been checked.
size_t workspace_size_cuda(const Params& params);
Status forward_cuda(const Params& params, const Output& output);
size_t backward_workspace_size_cuda(const Params& params);
Status backward_cuda(const Params& params, const Gradients& gradients);

}  // namespace earnest::attention
