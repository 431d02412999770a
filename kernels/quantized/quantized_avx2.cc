// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx2
#define EARNEST_VECTOR_BYTES 32
#define EARNEST_ACCUMULATORS 12
#include "kernels/quantized/quantized_simd.h"
#endif
