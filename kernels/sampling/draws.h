// SPDX-License-Identifier: Apache-2.0
// Tokens drawn where the logits are, on a GPU, so that a step of decoding brings home a number for each row
// and not the row: at V = 158,720 and 64 rows 20 MB.
//
// A row's token is, bit for bit, what sampling.h gives on the CPU for the same logits, temperature and
// uniform number: `run` and `draw`, or `likeliest` at temperature 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/bfloat16.h"
#include "kernels/common/status.h"

namespace earnest::sampling {

// Logits [first, first + count) of a row that are to be -inf; NaN stays NaN.
struct Suppressed {
  int32_t row, first, count;
};

constexpr int64_t kMostDraws = 65'535;  // rows at a time

// All arrays lie on the device. The call puts work on the stream, waits for nothing and allocates nothing.
struct Draws {
  int64_t rows = 0;                        // at most kMostDraws
  int64_t count = 0;                       // logits of a row: 1 to 2^31 - 1
  BFloat16* logits = nullptr;              // [rows, count]; lowered where suppressed
  const double* temperatures = nullptr;    // [rows], finite, 0 or more
  const double* uniforms = nullptr;        // [rows], in [0, 1)
  const Suppressed* suppressed = nullptr;  // [ranges], within rows and count
  int64_t ranges = 0;                      // at most 2^31 - 1
  int32_t* tokens = nullptr;               // [rows], out: a token, or less than 0 (status_of)
  void* stream = nullptr;                  // a cudaStream_t
};

size_t workspace_size(const Draws& job);
Status run(const Draws& job, void* workspace);  // which begins on 8 bytes

// What a token below 0 says: the error of `run` of sampling.h.
Status status_of(int32_t token);

// The seam to the CUDA back end, behind the checks. Without CUDA it says so.
Status draw_on_device(const Draws& job, void* workspace);

}  // namespace earnest::sampling
