// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx512
#define EARNEST_VECTOR_BYTES 64
#define EARNEST_ACCUMULATORS 24
#include "kernels/quantized/quantized_simd.h"
#endif
