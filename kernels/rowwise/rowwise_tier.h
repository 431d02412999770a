// SPDX-License-Identifier: Apache-2.0
// The pieces of work that exist once per CPU tier: a range of rows each. grad_weight is that of the range
// alone.
#pragma once

#include "kernels/rowwise/rowwise.h"

namespace earnest::rowwise {

template <typename Stored>
struct TierKernels {
  void (*rms_norm)(const RmsNorm<Stored>& job, int64_t begin, int64_t end);
  void (*rms_norm_backward)(const RmsNorm<Stored>& job, int64_t begin, int64_t end,
                            Arithmetic<Stored>* grad_weight);
  void (*swiglu)(const SwiGlu<Stored>& job, int64_t begin, int64_t end);
  void (*swiglu_backward)(const SwiGlu<Stored>& job, int64_t begin, int64_t end);
};
template <typename Fused, typename Apart>
struct RotaryKernels {
  void (*forward)(const Rotary<Fused, Apart>& job, int64_t begin, int64_t end);
  void (*backward)(const Rotary<Fused, Apart>& job, int64_t begin, int64_t end);
};

#define EARNEST_ROWWISE_TIER(tier)              \
  namespace tier {                              \
  template <typename Stored>                    \
  TierKernels<Stored> kernels();                \
  template <typename Fused, typename Apart>     \
  RotaryKernels<Fused, Apart> rotary_kernels(); \
  }
EARNEST_ROWWISE_TIER(scalar)
EARNEST_ROWWISE_TIER(avx2)
EARNEST_ROWWISE_TIER(avx512)
#undef EARNEST_ROWWISE_TIER

}  // namespace earnest::rowwise
