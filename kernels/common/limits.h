// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, measured: the yardsticks of `earnest bench`. Each returns the best of
// many short passes on num_threads() threads, so that a busy moment does not lower the limit.
#pragma once

#include <cstdint>

#include "kernels/common/status.h"

namespace earnest::limits {

enum class Arithmetic { kFloat32, kBfloat16 };

// Bytes a second of reading `bytes` of memory over and over. Threads share them: each reads its own part.
Status read_rate(int64_t bytes, double seconds, double* rate);

// Bytes a second of copying `bytes` of memory, read and written ones both counted, past the caches if large.
Status copy_rate(int64_t bytes, double seconds, double* rate);

// Operations a second (a product and a sum are two) of multiply-adds on registers. Bfloat16 pairs summed into
// float32 need the avx512_bf16 tier; *rate is 0 below it.
Status arithmetic_rate(Arithmetic arithmetic, double seconds, double* rate);

}  // namespace earnest::limits
