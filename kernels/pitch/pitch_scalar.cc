// SPDX-License-Identifier: Apache-2.0
#include "kernels/pitch/pitch_backend.h"

#define EARNEST_LANES 4
namespace earnest::pitch::scalar {
#include "kernels/pitch/pitch_tile.h"
}  // namespace earnest::pitch::scalar
