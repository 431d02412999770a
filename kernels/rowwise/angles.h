// SPDX-License-Identifier: Apache-2.0
// The angles by which rotary positions turn, the same numbers wherever a model runs on the CPU.
//
//   rate_j = 1 / theta^(2 j / dim)      angle_ij = positions_i rate_j                     (arXiv 2104.09864)
//
// Every step is rounded to float, as in the published models' code, which makes them in float; powers,
// cosines and sines are those of double, rounded.
#pragma once

#include <cstdint>

#include "kernels/common/status.h"

namespace earnest::rowwise {

struct RotaryAngles {
  int64_t rows = 0, dim = 0;           // dim even
  double theta = 0;                    // finite, above 0
  const int64_t* positions = nullptr;  // [rows], each in [0, 2^24], so that a float holds it
  float* cosine = nullptr;             // [rows, dim / 2], out
  float* sine = nullptr;               // [rows, dim / 2], out
};

Status run(const RotaryAngles& job);

}  // namespace earnest::rowwise
