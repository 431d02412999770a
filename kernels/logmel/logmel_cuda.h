// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end.
#pragma once

#include "kernels/common/status.h"

namespace earnest::logmel {

Status unsupported_cuda();

}  // namespace earnest::logmel
