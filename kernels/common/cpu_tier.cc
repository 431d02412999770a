// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/cpu_tier.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

namespace earnest {
namespace {

constexpr int kNotForced = -1;
std::atomic<int> forced_tier{kNotForced};

Status parse_tier(const std::string& name, CpuTier* tier) {
  for (CpuTier candidate : {CpuTier::kScalar, CpuTier::kAvx2, CpuTier::kAvx512, CpuTier::kAvx512Bf16}) {
    if (name != name_of(candidate)) continue;
    if (candidate > best_cpu_tier()) {
      return unsupported("cpu_tier", "EARNEST_CPU_TIER",
                         std::string("at most ") + name_of(best_cpu_tier()) + " on this machine", name);
    }
    *tier = candidate;
    return {};
  }
  return invalid_argument("cpu_tier", "EARNEST_CPU_TIER", "scalar, avx2, avx512 or avx512_bf16",
                          "'" + name + "'");
}

}  // namespace

const char* name_of(CpuTier tier) {
  switch (tier) {
    case CpuTier::kAvx512Bf16:
      return "avx512_bf16";
    case CpuTier::kAvx512:
      return "avx512";
    case CpuTier::kAvx2:
      return "avx2";
    case CpuTier::kScalar:
      break;
  }
  return "scalar";
}

CpuTier best_cpu_tier() {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide registers.
  static const CpuTier best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    // Every processor with AVX512_BF16 has VNNI too; only a virtual machine could hide one of them.
    const bool bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    if (avx512 && bf16) return CpuTier::kAvx512Bf16;
    return avx512 ? CpuTier::kAvx512 : avx2 ? CpuTier::kAvx2 : CpuTier::kScalar;
  }();
  return best;
#else
  return CpuTier::kScalar;
#endif
}

namespace {

Status chosen_cpu_tier(CpuTier* tier) {
  const int forced = forced_tier.load(std::memory_order_relaxed);
  if (forced != kNotForced) {
    *tier = static_cast<CpuTier>(forced);
    return {};
  }
  static const char* environment = std::getenv("EARNEST_CPU_TIER");
  if (environment == nullptr || *environment == '\0') {
    *tier = best_cpu_tier();
    return {};
  }
  return parse_tier(environment, tier);
}

}  // namespace

Status current_cpu_tier(CpuTier* tier, CpuTier highest) {
  Status status = chosen_cpu_tier(tier);
  *tier = std::min(*tier, highest);
  return status;
}

Status force_cpu_tier(const std::string& name) {
  if (name.empty()) {
    forced_tier = kNotForced;
    return {};
  }
  CpuTier tier;
  if (Status status = parse_tier(name, &tier); !status.ok()) return status;
  forced_tier = static_cast<int>(tier);
  return {};
}

}  // namespace earnest
