// SPDX-License-Identifier: Apache-2.0
// The CPU tiers that this machine has, up to the last that a family has code of its own for.
#pragma once

#include <string>
#include <vector>

#include "kernels/common/cpu_tier.h"

inline std::vector<std::string> usable_tiers(earnest::CpuTier highest = earnest::CpuTier::kAvx512Bf16) {
  using earnest::CpuTier;
  std::vector<std::string> names;
  for (CpuTier tier : {CpuTier::kScalar, CpuTier::kAvx2, CpuTier::kAvx512, CpuTier::kAvx512Bf16}) {
    if (tier <= highest && tier <= earnest::best_cpu_tier()) names.emplace_back(name_of(tier));
  }
  return names;
}
