// SPDX-License-Identifier: Apache-2.0
// The walk over tiles, the same for every CPU tier. All problems have been checked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/linear/linear.h"
#include "kernels/linear/linear_tile.h"

namespace earnest::linear {

size_t element_size(Type type);

// What stands at the start of a packed matrix, so that it is not taken for one of another shape or type.
struct alignas(64) PackedHeader {
  static constexpr uint64_t kMagic = 0x3252414e494c4541;  // "AELINAR2"
  uint64_t magic;
  int64_t type, columns, depth;
};

size_t packed_bytes(Type type, int64_t columns, int64_t depth);
void run_pack(const Pack& pack, const TileKernels& kernels, void* packed);

size_t product_workspace(Type type, int threads);
void run_product(const Product& product, const TileKernels& kernels, void* workspace);
void run_weight_gradient(const WeightGradient& gradient, const TileKernels& kernels, void* workspace);

}  // namespace earnest::linear
