// SPDX-License-Identifier: Apache-2.0
// What stands behind rotary_write.cc: rotary_write_cpu.cc, and the seam to CUDA, which is
// rotary_write_cuda.cu in a build with it and rotary_write_nocuda.cc in one without.
#pragma once

#include "kernels/attention/rotary_write.h"

namespace earnest::attention::rotary_write {

// How faults are numbered (kernels/common/device_fault.h); their index is the token, of a scale the key head.
namespace faults {
constexpr int kPosition = 0, kSlot = 1, kScale = 2;
}

// Sizes and pointers have been checked; there is a token.
Status run_cpu(const Params& params);
Status run_cuda(const Params& params);
Status which_cuda(std::string* name);

}  // namespace earnest::attention::rotary_write
