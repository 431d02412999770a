// SPDX-License-Identifier: Apache-2.0
// The kernel's side of device_fault.h.
#pragma once

#include "kernels/common/device_fault.h"
#include "kernels/common/simt.h"

namespace earnest {

__device__ inline void record_fault(FaultWord* word, const Fault& fault) { atomicMin(word, word_of(fault)); }

}  // namespace earnest
