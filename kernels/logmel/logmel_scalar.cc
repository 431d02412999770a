// SPDX-License-Identifier: Apache-2.0
#include "kernels/logmel/logmel_backend.h"

#define EARNEST_LANES 4
namespace earnest::logmel::scalar {
#include "kernels/logmel/logmel_tile.h"
}  // namespace earnest::logmel::scalar
