// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end. Without CUDA each of these says so.
#pragma once

#include "kernels/attention/attention.h"

namespace earnest::attention {

// Makes of the path that is asked for the one that the call takes: kSm80 or kSm90a. An error where the device
// has none for it.
Status settle_path(Params* params);

// The parameters have been checked, and their path settled.
size_t workspace_size_cuda(const Params& params);
Status forward_cuda(const Params& params, const Output& output);
size_t backward_workspace_size_cuda(const Params& params);
Status backward_cuda(const Params& params, const Gradients& gradients);

}  // namespace earnest::attention
