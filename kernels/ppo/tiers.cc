// SPDX-License-Identifier: Apache-2.0
#include "kernels/ppo/tiers.h"

#include "kernels/common/cpu_tier.h"
#include "kernels/ppo/ppo_cuda.h"

namespace earnest::ppo {

template <typename T>
Status tier_kernels(TierKernels<T>* kernels) {
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier, CpuTier::kAvx512); !status.ok()) return status;
  *kernels = scalar::kernels<T>();
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx2) *kernels = avx2::kernels<T>();
  if (tier == CpuTier::kAvx512) *kernels = avx512::kernels<T>();
#endif
  return {};
}

template Status tier_kernels<float>(TierKernels<float>*);
template Status tier_kernels<double>(TierKernels<double>*);

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) return which_cuda(name);
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier, CpuTier::kAvx512); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

}  // namespace earnest::ppo
