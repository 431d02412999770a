// SPDX-License-Identifier: Apache-2.0
// Which of CUDA's paths a call takes, where its family has two of them: one rule for all families.
// EARNEST_CUDA_TIER=sm80|sm90a forces one for all calls of the process that name none themselves.
#pragma once

#include <string>

#include "kernels/common/cuda.h"
#include "kernels/common/status.h"

namespace earnest {

// kSm80 (cp.async, mma.sync) runs on every GPU of compute capability 8.0 or more, kSm90a (TMA, wgmma) on 9.0.
// Their bits differ, as those of CPU tiers do.
enum class CudaPath { kBest, kSm80, kSm90a };

const char* name_of(CudaPath path);

namespace cuda {

// The last path that a GPU has run. None has run kSm90a yet, only the emulator, so that it is taken by name
// alone. Once one has, and its tests have passed there, make this kSm90a: it is then the choice on 9.0.
constexpr CudaPath kLastMet = CudaPath::kSm80;

struct PathRequest {
  CudaPath asked = CudaPath::kBest;     // by the call
  CudaPath highest = CudaPath::kSm90a;  // that the family has code for in the call's type
  const char* beyond_sm90a = nullptr;   // what of the call kSm90a cannot do; null: nothing
};

// kSm80 or kSm90a, by the device, the call and what the environment forces alone. As of CPU tiers, a type
// that a forced path has no code for goes by its highest one. All else that is asked for or forced and cannot
// run is an error, never another path.
Status choose_path(const char* op, const Properties& device, const PathRequest& request, CudaPath forced,
                   CudaPath* path, CudaPath last_met = kLastMet);

// The same on the current device and in the current environment.
Status choose_path(const char* op, const PathRequest& request, CudaPath* path);

}  // namespace cuda

// Forces a path for this process ("" goes back to the environment's, or to none). For tests and benchmarks.
Status force_cuda_tier(const std::string& name);

// What is forced; kBest if nothing is.
Status forced_cuda_tier(CudaPath* path);

}  // namespace earnest
