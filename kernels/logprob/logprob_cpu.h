// SPDX-License-Identifier: Apache-2.0
// The walk over tiles, the same for every CPU tier.
#pragma once

#include <cstddef>

#include "kernels/logprob/logprob.h"
#include "kernels/logprob/logprob_tile.h"

namespace earnest::logprob {

// Elements of scratch memory, laid one after another from a 64-byte boundary.
struct ForwardLayout {
  size_t hidden, weight, sums, target_logits, states, bytes;
};
struct BackwardLayout {
  size_t hidden, hidden_rows, weight, weight_rows, dz, grad_hidden, grad_weight, bytes;
};
ForwardLayout layout(const Forward& forward);
BackwardLayout layout(const Backward& backward);

// The problem has been checked; T is the type of the arithmetic.
template <typename T>
void run_forward(const Forward& forward, const TileKernels<T>& kernels, void* workspace);
template <typename T>
void run_backward(const Backward& backward, const TileKernels<T>& kernels, void* workspace);

}  // namespace earnest::logprob
