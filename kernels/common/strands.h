// SPDX-License-Identifier: Apache-2.0
// How the products of linear layers on CUDA sum over their depth, whatever number of rows they have: in up to
// 8 strands of whole 64s, each one chain from zero, the strands added in order. Few rows give each strand to
// a warp of its own, many rows walk along all of them; the bits are the same.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest {

constexpr int kStrands = 8;
constexpr int kStrandUnit = 64;  // numbers of the depth

// How long a strand is; the last may be shorter, and there may be fewer than 8.
EARNEST_HOST_DEVICE constexpr int64_t strand_length(int64_t depth) {
  const int64_t units = (depth + kStrandUnit - 1) / kStrandUnit;
  return (units + kStrands - 1) / kStrands * kStrandUnit;
}
EARNEST_HOST_DEVICE constexpr int strands_of(int64_t depth) {
  const int64_t length = strand_length(depth);
  return static_cast<int>((depth + length - 1) / length);
}

}  // namespace earnest
