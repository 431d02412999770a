// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU kernels use. Probed once; EARNEST_CPU_TIER=scalar|avx2|avx512|avx512_bf16
// forces one.
#pragma once

#include <string>

#include "kernels/common/status.h"

namespace earnest {

enum class CpuTier { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

const char* name_of(CpuTier tier);

// The best tier that both the processor and the operating system support.
CpuTier best_cpu_tier();

// The tier in use: the forced one, or the best; at most `highest`, the last that the caller has code of its
// own for. A forced tier that cannot run here is an error, never ignored.
Status current_cpu_tier(CpuTier* tier, CpuTier highest = CpuTier::kAvx512Bf16);

// Forces a tier for this process ("" goes back to the environment's or the best). For tests and benchmarks.
Status force_cpu_tier(const std::string& name);

}  // namespace earnest
