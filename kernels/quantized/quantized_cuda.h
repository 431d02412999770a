// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end. Without CUDA each of these says so.
#pragma once

#include "kernels/quantized/quantized.h"

namespace earnest::quantized {

// The path that would run the product, whose parts need not be there; an error if there is none.
Status which_cuda(const Product& product, int64_t outputs, std::string* name);

// The product has been checked.
size_t workspace_size_cuda(const Product& product);
Status run_cuda(const Product& product, void* workspace);

}  // namespace earnest::quantized
