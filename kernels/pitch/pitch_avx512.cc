// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/pitch/pitch_backend.h"

#define EARNEST_LANES 16
namespace earnest::pitch::avx512 {
#include "kernels/pitch/pitch_tile.h"
}  // namespace earnest::pitch::avx512
