// SPDX-License-Identifier: Apache-2.0
// What stands behind paged_attention.cc: paged_attention_cpu.cc, and the seam to CUDA, which is
// paged_attention_cuda.cu in a build with it and paged_attention_nocuda.cc in one without.
#pragma once

#include "kernels/attention/paged_attention.h"

namespace earnest::attention::paged {

// How faults are numbered (kernels/common/device_fault.h); their index is the sequence, of a scale the key
// head.
namespace faults {
constexpr int kBounds = 0, kLength = 1, kPage = 2, kScale = 3;
}

// Sizes and pointers have been checked.
Status run_cpu(const Params& params, const Output& output);
Status run_cuda(const Params& params, const Output& output, void* workspace);
Status which_cpu(std::string* name);
Status which_cuda(std::string* name);

}  // namespace earnest::attention::paged
