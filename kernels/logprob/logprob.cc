// SPDX-License-Identifier: Apache-2.0
// Checks, and the choice of back end.
#include "kernels/logprob/logprob.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/cpu_tier.h"
#include "kernels/logprob/logprob_cuda.h"
#include "kernels/logprob/logprob_packing.h"

namespace earnest::logprob {
namespace {

Status check_pointer(const char* argument, const void* pointer) {
  if (pointer != nullptr) return {};
  return invalid_argument("logprob", argument, "an array", "null");
}

Status check_targets(const Problem& p) {
  for (int64_t n = 0; n < p.rows; ++n) {
    if (p.targets[n] >= 0 && p.targets[n] < p.vocabulary) continue;
    return invalid_argument("logprob", "targets", "token ids in [0, " + std::to_string(p.vocabulary) + ")",
                            std::to_string(p.targets[n]) + " in row " + std::to_string(n));
  }
  return {};
}

const TileKernels<double>& double_kernels(CpuTier tier) {
#if defined(__x86_64__)
  if (tier >= CpuTier::kAvx512) return avx512::kernels_double();
  if (tier == CpuTier::kAvx2) return avx2::kernels_double();
#endif
  return scalar::kernels_double();
}

// Numbers in a word of packed operands.
int64_t pair_of(Type type) {
  CpuTier tier;
  if (type == Type::kFloat64 || !current_cpu_tier(&tier).ok()) return 1;  // run() reports the error
  return float_kernels(tier, type).pair;
}

}  // namespace

const TileKernels<float>& float_kernels(CpuTier tier, Type type) {
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx512Bf16 && type == Type::kBFloat16) return avx512_bf16::kernels_bfloat16();
  if (tier >= CpuTier::kAvx512) return avx512::kernels_float();
  if (tier == CpuTier::kAvx2) return avx2::kernels_float();
#endif
  return scalar::kernels_float();
}

Status check(const Problem& p) {
  if (p.device == Device::kCuda) {
    std::string name;
    if (Status status = which_cuda(p, &name); !status.ok()) return status;
  }
  if (p.rows < 0) return invalid_argument("logprob", "hidden", "N >= 0 rows", std::to_string(p.rows));
  if (p.depth < 1) return invalid_argument("logprob", "hidden", "H >= 1 columns", std::to_string(p.depth));
  if (p.vocabulary < 1)
    return invalid_argument("logprob", "weight", "V >= 1 rows", std::to_string(p.vocabulary));
  constexpr int64_t kMostOnCuda =
      std::numeric_limits<int32_t>::max();  // rows and ids are held in 32 bits there
  if (p.device == Device::kCuda && std::max({p.rows, p.depth, p.vocabulary}) > kMostOnCuda) {
    return invalid_argument("logprob", "hidden", "sizes below 2^31 on cuda", "larger ones");
  }
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 64;  // sizes in bytes must not overflow
  if (p.rows > kMost / p.depth || p.vocabulary > kMost / p.depth) {
    return invalid_argument("logprob", "hidden", "sizes that fit in memory", "larger ones");
  }
  if (!(std::isfinite(p.temperature) && p.temperature > 0)) {
    return invalid_argument("logprob", "temperature", "a finite number above 0",
                            std::to_string(p.temperature));
  }
  // Its inverse is a factor in the arithmetic's type.
  const double inverse = 1 / p.temperature;
  if (p.type != Type::kFloat64 &&
      (static_cast<float>(inverse) == 0 || !std::isfinite(static_cast<float>(inverse)))) {
    return invalid_argument("logprob", "temperature", "a number whose inverse is a float above 0",
                            std::to_string(p.temperature));
  }
  if (p.rows == 0) return {};
  if (Status status = check_pointer("hidden", p.hidden); !status.ok()) return status;
  if (Status status = check_pointer("weight", p.weight); !status.ok()) return status;
  if (Status status = check_pointer("targets", p.targets); !status.ok()) return status;
  return p.device == Device::kCuda ? Status() : check_targets(p);
}

int64_t kept_size(const Problem& p) {
  if (p.device == Device::kCuda) return 0;
  const Kept kept(p);
  return kept.tiles * kept.rows * kTile;
}
size_t workspace_size(const Forward& f) {
  if (f.problem.device == Device::kCuda) return workspace_size_cuda(f);
  return workspace_size(f, pair_of(f.problem.type));
}
size_t workspace_size(const Backward& b) {
  if (b.problem.device == Device::kCuda) return workspace_size_cuda(b);
  return workspace_size(b, pair_of(b.problem.type));
}

Status run(const Forward& f, void* workspace) {
  if (Status status = check(f.problem); !status.ok()) return status;
  if (f.problem.rows == 0) return {};
  for (const void* output : {f.logp, f.entropy, f.lse}) {
    if (Status status = check_pointer("output", output); !status.ok()) return status;
  }
  if (Status status = check_pointer("workspace", workspace); !status.ok()) return status;
  if (f.problem.device == Device::kCuda) return run_cuda(f, workspace);
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  if (f.problem.type == Type::kFloat64) {
    run_forward(f, double_kernels(tier), workspace);
  } else {
    run_forward(f, float_kernels(tier, f.problem.type), workspace);
  }
  return {};
}

Status run(const Backward& b, void* workspace) {
  if (Status status = check(b.problem); !status.ok()) return status;
  if (b.problem.rows > 0) {
    if (Status status = check_pointer("lse", b.lse); !status.ok()) return status;
    if (Status status = check_pointer("entropy", b.entropy); !status.ok()) return status;
  }
  if (Status status = check_pointer("workspace", workspace); !status.ok()) return status;
  if (b.problem.device == Device::kCuda) return run_cuda(b, workspace);
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  if (b.problem.type == Type::kFloat64) {
    run_backward(b, double_kernels(tier), workspace);
  } else {
    run_backward(b, float_kernels(tier, b.problem.type), workspace);
  }
  return {};
}

Status fault(const Problem& p, FaultWord word) {
  if (word == kNoFault) return {};
  return invalid_argument("logprob", "targets", "token ids in [0, " + std::to_string(p.vocabulary) + ")",
                          "another in row " + std::to_string(fault_of(word).index));
}

Status which(const Problem& p, std::string* name) {
  return p.device == Device::kCuda ? which_cuda(p, name) : which(p.device, name);
}

Status which(Device device, std::string* name) {
  if (device == Device::kCuda) {
    Problem any;
    any.type = Type::kBFloat16;
    any.depth = 8;
    return which_cuda(any, name);
  }
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier); !status.ok()) return status;
  *name = std::string("cpu/") + name_of(tier);
  return {};
}

}  // namespace earnest::logprob
