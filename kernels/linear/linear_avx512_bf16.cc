// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx512_bf16
#define EARNEST_VECTOR_BYTES 64
#define EARNEST_ACCUMULATORS 24
#define EARNEST_VDPBF16 1
#include "kernels/linear/linear_simd.h"
#endif
