// SPDX-License-Identifier: Apache-2.0
// Numbers of tests as kernels store them.
#pragma once

#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/float8.h"

namespace earnest {

template <typename Stored>
Stored rounded(double x) {
  Stored y;
  narrow(static_cast<float>(x), &y);
  return y;
}

}  // namespace earnest
