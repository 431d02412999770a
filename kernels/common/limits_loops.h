// SPDX-License-Identifier: Apache-2.0
// The inner loops of the limits, one table per CPU tier.
#pragma once

#include <cstdint>

namespace earnest::limits {

struct Loops {
  float (*read)(const float* data, int64_t count);            // returns what depends on all of it
  void (*copy)(const float* from, float* to, int64_t count);  // not through the caches where that exists
  float (*multiply_add)(int64_t rounds);                      // float32
  int64_t operations;                                         // in a round of multiply_add
  float (*dot_bfloat16)(int64_t rounds);                      // null where there is no such instruction
  int64_t dot_operations;
};

constexpr int64_t kChunk = 128;    // counts are multiples of this many floats
constexpr int kAccumulators = 16;  // enough chains to hide an instruction's latency

Loops scalar_loops();
Loops avx2_loops();
Loops avx512_loops();
Loops avx512_bf16_loops();

}  // namespace earnest::limits
