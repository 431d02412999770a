// SPDX-License-Identifier: Apache-2.0
// Weights to draw a token by, from a row of logits.
//
//   most = max l_i      w_i = exp((l_i - most) / temperature)      in float64
//
// The draw is inverse transform sampling: the first i whose w_0 + ... + w_i exceeds uniform * (w_0 + ... ).
// Sums are kept for blocks of kBlock weights, so that a draw adds few numbers one after the other.
//
// exp is our own, wrong by less than 2^-52 of it and 0 below exp(-700); every tier and every
// machine gives the same bits: nothing is fused, and the order of sums is fixed.
#pragma once

#include <cstdint>

#include "kernels/common/status.h"

namespace earnest::sampling {

constexpr int64_t kBlock = 256;

constexpr int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

struct Weigh {
  int64_t count = 0;         // at least 1
  double temperature = 1;    // finite and above 0
  double* values = nullptr;  // [count], logits that become weights; -inf weighs nothing
  double* sums = nullptr;    // [blocks_of(count)], written
};

// An error, and the logits as they were, where one is NaN or +inf or all are -inf.
Status run(const Weigh& job);
Status none_to_draw();
Status not_finite();  // what it says then

// The first of the largest logits [count]; errors as of run.
Status likeliest(const double* logits, int64_t count, int64_t* index);

// Of weights that `run` has left. uniform in [0, 1). Where rounding leaves the whole sum below the aim, the
// last that weighs anything.
int64_t draw(const Weigh& job, double uniform);

}  // namespace earnest::sampling
