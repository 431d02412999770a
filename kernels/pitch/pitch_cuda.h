// SPDX-License-Identifier: Apache-2.0
// The one thing pitch.cc asks of a build with or without CUDA.
#pragma once

#include "kernels/common/status.h"

namespace earnest::pitch {

Status unsupported_cuda();

}  // namespace earnest::pitch
