// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/logmel/logmel_backend.h"

#define EARNEST_LANES 16
namespace earnest::logmel::avx512 {
#include "kernels/logmel/logmel_tile.h"
}  // namespace earnest::logmel::avx512
