// SPDX-License-Identifier: Apache-2.0
// Several matrices in one launch: each part has blocks of its own, `first_block` being the first of them.
#pragma once

#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest {

constexpr int kMostParts = 16;

template <typename Part>
EARNEST_HOST_DEVICE inline int part_of_block(const Part* parts, int count, int64_t block) {
  int part = 0;
  while (part + 1 < count && parts[part + 1].first_block <= block) ++part;
  return part;
}

}  // namespace earnest
