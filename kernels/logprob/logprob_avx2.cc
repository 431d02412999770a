// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx2
#define EARNEST_VECTOR_BYTES 32
#define EARNEST_ROW_GROUP 4
#define EARNEST_PANEL_VECTORS 3
#include "kernels/logprob/logprob_simd.h"

namespace earnest::logprob::avx2 {

const TileKernels<float>& kernels_float() { return kKernels<Single<float>>; }
const TileKernels<double>& kernels_double() { return kKernels<Single<double>>; }

}  // namespace earnest::logprob::avx2
#endif
