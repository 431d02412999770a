// SPDX-License-Identifier: Apache-2.0
// The walk over tiles, the same for every CPU tier. All problems have been checked.
#pragma once

#include <cstddef>

#include "kernels/quantized/quantized.h"
#include "kernels/quantized/quantized_tile.h"

namespace earnest::quantized {

int planes_of(const Product& product);
size_t product_workspace(const Product& product);
void run_product(const Product& product, const Kernels& kernels, void* workspace);

void run_pack(const Shape& shape, Type type, const void* source, void* packed);
void run_unpack(const Shape& shape, const void* packed, int64_t first, int64_t count, Type type, void* rows);

}  // namespace earnest::quantized
