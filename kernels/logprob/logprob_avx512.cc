// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx512
#define EARNEST_VECTOR_BYTES 64
#define EARNEST_ROW_GROUP 8
#define EARNEST_PANEL_VECTORS 3
#include "kernels/logprob/logprob_simd.h"

namespace earnest::logprob::avx512 {

const TileKernels<float>& kernels_float() { return kKernels<Single<float>>; }
const TileKernels<double>& kernels_double() { return kKernels<Single<double>>; }

}  // namespace earnest::logprob::avx512
#endif
