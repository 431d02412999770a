// SPDX-License-Identifier: Apache-2.0
// The seam at which back ends for other devices join.
#pragma once

#include "kernels/common/status.h"

namespace earnest::quantized {

// Says why there is no CUDA back end in this build.
Status unsupported_cuda();

}  // namespace earnest::quantized
