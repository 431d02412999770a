// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end, beside find_vendor. Without CUDA each of these says so.
#pragma once

#include "kernels/linear/linear.h"

namespace earnest::linear {

// The path that would run the product, which need not have been checked; an error if it asks for one that
// cannot.
Status which_cuda(const Product& product, std::string* name);

// The product has been checked.
size_t workspace_size_cuda(const Product& product);
Status run_cuda(const Product& product, void* workspace);

}  // namespace earnest::linear
