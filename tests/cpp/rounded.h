// SPDX-License-Identifier: Apache-2.0
// Numbers of tests as kernels store them.
#pragma once

#include "kernels/common/bfloat16.h"

template <typename Stored = earnest::BFloat16>
Stored rounded(double x) {
  Stored y;
  narrow(static_cast<float>(x), &y);
  return y;
}
