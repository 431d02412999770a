// SPDX-License-Identifier: Apache-2.0
#define EARNEST_TIER scalar
#define EARNEST_VECTOR_BYTES 16
#define EARNEST_ROW_GROUP 4
#define EARNEST_PANEL_VECTORS 2
#include "kernels/logprob/logprob_simd.h"

namespace earnest::logprob::scalar {

const TileKernels<float>& kernels_float() { return kKernels<Single<float>>; }
const TileKernels<double>& kernels_double() { return kKernels<Single<double>>; }

}  // namespace earnest::logprob::scalar
