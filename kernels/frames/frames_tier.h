// SPDX-License-Identifier: Apache-2.0
// The pieces of work that exist once per CPU tier: a range of rows or of values each. Gradients of weights
// are added to what is there, those of the range alone.
#pragma once

#include "kernels/frames/frames.h"

namespace earnest::frames {

template <typename Stored>
struct TierKernels {
  using T = Arithmetic<Stored>;
  void (*layer_norm)(const LayerNorm<Stored>& job, int64_t begin, int64_t end);
  void (*layer_norm_backward)(const LayerNorm<Stored>& job, int64_t begin, int64_t end, T* grad_weight,
                              T* grad_bias);
  void (*gelu)(const Stored* x, Stored* y, int64_t count);
  void (*gelu_backward)(const Stored* x, const Stored* grad_y, Stored* grad_x, int64_t count);
  void (*relu)(const Stored* x, Stored* y, int64_t count);
  void (*add)(const Stored* x, const Stored* y, Stored* sum, int64_t count);
  void (*halve)(Stored* y, int64_t count);
};

#define EARNEST_FRAMES_TIER(tier) \
  namespace tier {                \
  template <typename Stored>      \
  TierKernels<Stored> kernels();  \
  }
EARNEST_FRAMES_TIER(scalar)
EARNEST_FRAMES_TIER(avx2)
EARNEST_FRAMES_TIER(avx512)
#undef EARNEST_FRAMES_TIER

}  // namespace earnest::frames
