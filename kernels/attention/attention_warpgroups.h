// SPDX-License-Identifier: Apache-2.0
// Path sm90a, both passes: a block is three warpgroups. The first serves, two multiply; tiles go round in a
// ring of places in shared memory.
#pragma once

#include "kernels/attention/attention_operands.h"
#include "kernels/common/hopper_products.h"

namespace earnest::attention::gpu::sm90a {

using hopper::Barrier;
using hopper::kBox;
using hopper::kBoxBytes;
using sm80::Bytes;

constexpr int kWarpgroup = 128, kMultiplying = 2 * kWarpgroup, kMultiplyingWarps = 8;
static_assert(kKeys == kBox && kTileRows == 2 * kBox);

// Where a thread stands in the ring. The n-th use of a place waits for parity n % 2 of its barriers.
template <int kStages>
struct Round {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace earnest::attention::gpu::sm90a
