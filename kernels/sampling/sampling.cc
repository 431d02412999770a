// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling/sampling.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/common/cpu_tier.h"
#include "kernels/sampling/sampling_tier.h"

namespace earnest::sampling {
namespace {

Status choose(int64_t count, TierKernels* kernels) {
  if (count < 1) return invalid_argument("generate", "count", "at least 1", std::to_string(count));
  CpuTier tier;
  if (Status status = current_cpu_tier(&tier, CpuTier::kAvx512); !status.ok()) return status;
  *kernels = scalar::kernels();
#if defined(__x86_64__)
  if (tier == CpuTier::kAvx2) *kernels = avx2::kernels();
  if (tier == CpuTier::kAvx512) *kernels = avx512::kernels();
#endif
  return {};
}

// The largest logit, if there is a finite one and none is NaN or +inf.
Status find_largest(const TierKernels& kernels, const double* logits, int64_t count, double* most) {
  *most = kernels.largest(logits, count);
  if (std::isfinite(*most)) return {};
  return std::isinf(*most) && *most < 0 ? none_to_draw() : not_finite();
}

}  // namespace

Status none_to_draw() { return invalid_argument("generate", "logits", "a token that may be drawn", "none"); }
Status not_finite() { return invalid_argument("generate", "logits", "finite numbers", "NaN or infinity"); }

Status run(const Weigh& job) {
  if (!(job.temperature > 0 && std::isfinite(job.temperature))) {
    return invalid_argument("generate", "temperature", "a finite number above 0",
                            std::to_string(job.temperature));
  }
  TierKernels kernels;
  double most = 0;
  if (Status status = choose(job.count, &kernels); !status.ok()) return status;
  if (Status status = find_largest(kernels, job.values, job.count, &most); !status.ok()) return status;
  kernels.weigh(job, most);
  return {};
}

Status likeliest(const double* logits, int64_t count, int64_t* index) {
  TierKernels kernels;
  double most = 0;
  if (Status status = choose(count, &kernels); !status.ok()) return status;
  if (Status status = find_largest(kernels, logits, count, &most); !status.ok()) return status;
  *index = std::find(logits, logits + count, most) - logits;
  return {};
}

int64_t draw(const Weigh& job, double uniform) {
  const int64_t blocks = blocks_of(job.count);
  double sum = 0, reached = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += job.sums[block];
  const double aim = uniform * sum;
  int64_t block = 0;
  while (block + 1 < blocks && reached + job.sums[block] <= aim) reached += job.sums[block++];
  for (int64_t i = block * kBlock; i < job.count; ++i) {
    reached += job.values[i];
    if (reached > aim) return i;
  }
  int64_t last = job.count - 1;  // rounding left the sum below the aim
  while (last > 0 && job.values[last] == 0) --last;
  return last;
}

}  // namespace earnest::sampling
