// SPDX-License-Identifier: Apache-2.0
#define EARNEST_TIER scalar
#define EARNEST_VECTOR_BYTES 16
#define EARNEST_ACCUMULATORS 12
#include "kernels/quantized/quantized_simd.h"
