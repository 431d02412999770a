// SPDX-License-Identifier: Apache-2.0
// The loops that exist once per CPU tier.
#pragma once

#include "kernels/sampling/sampling.h"

namespace earnest::sampling {

struct TierKernels {
  // The largest of them; NaN where one is NaN.
  double (*largest)(const double* logits, int64_t count);
  void (*weigh)(const Weigh& job, double most);
};

#define EARNEST_SAMPLING_TIER(tier) \
  namespace tier {                  \
  TierKernels kernels();            \
  }
EARNEST_SAMPLING_TIER(scalar)
EARNEST_SAMPLING_TIER(avx2)
EARNEST_SAMPLING_TIER(avx512)
#undef EARNEST_SAMPLING_TIER

}  // namespace earnest::sampling
