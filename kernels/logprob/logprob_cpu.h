// SPDX-License-Identifier: Apache-2.0
// The walk over tiles, the same for every CPU tier. Outer loop: slabs of columns; inner loop: chunks of rows.
// Within one (slab, chunk), tasks own whole outputs, and what a task computes does not depend on how the rows
// were cut, so neither threads nor batch mates change a bit.
#pragma once

#include <cstddef>

#include "kernels/common/cpu_tier.h"
#include "kernels/logprob/logprob.h"
#include "kernels/logprob/logprob_tile.h"

namespace earnest::logprob {

// The kernels of float32 and bfloat16 on a tier.
const TileKernels<float>& float_kernels(CpuTier tier, Type type);

// Bytes of scratch memory for kernels with `pair` numbers in a word.
size_t workspace_size(const Forward& forward, int64_t pair);
size_t workspace_size(const Backward& backward, int64_t pair);

// The problem has been checked; T is the type of the arithmetic.
template <typename T>
void run_forward(const Forward& forward, const TileKernels<T>& kernels, void* workspace);
template <typename T>
void run_backward(const Backward& backward, const TileKernels<T>& kernels, void* workspace);

}  // namespace earnest::logprob
