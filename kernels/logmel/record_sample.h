// SPDX-License-Identifier: Apache-2.0
// What kernels of log-mel say in the fault word (kernels/common/device_fault.h).
#pragma once

#include "kernels/common/record_fault.h"
#include "kernels/common/simt.h"
#include "kernels/logmel/logmel_cuda.h"

namespace earnest::logmel {

// Whether a sample is finite and at most kMaxMagnitude; if not, the fault of sample `index` of pcm.
__device__ __forceinline__ bool check_sample(FaultWord* word, int64_t index, float x) {
  if (fabsf(x) <= kMaxMagnitude) return true;
  const SampleFault fault = x != x             ? SampleFault::kNan
                            : fabsf(x) > 3e38f ? SampleFault::kInf
                                               : SampleFault::kLarge;
  record_fault(word, {FaultOp::kLogMel, index, static_cast<int>(fault)});
  return false;
}

}  // namespace earnest::logmel
