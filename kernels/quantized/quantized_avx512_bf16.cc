// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx512_bf16
#define EARNEST_VECTOR_BYTES 64
#define EARNEST_ACCUMULATORS 24
#define EARNEST_VNNI 1  // every processor with AVX512_BF16 has it
#include "kernels/quantized/quantized_simd.h"
#endif
