// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/common/limits_loops.h"

namespace earnest::limits {
namespace {

// Not _mm512_reduce_add_ps, which gcc 12 warns about.
float sum_of_lanes(__m512 x) {
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, x);
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

constexpr int kPairs = 16;  // each lane sums the products of two bfloat16 pairs

float dot_bfloat16(int64_t rounds) {
  const __m512bh ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f));
  __m512 sums[kAccumulators];  // start apart, or the compiler sees that all chains are one
  for (int j = 0; j < kAccumulators; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  for (int64_t round = 0; round < rounds; ++round) {
    for (__m512& x : sums) x = _mm512_dpbf16_ps(x, ones, ones);
  }
  for (int j = 1; j < kAccumulators; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return sum_of_lanes(sums[0]);
}

}  // namespace

Loops avx512_bf16_loops() {
  Loops loops = avx512_loops();
  loops.dot_bfloat16 = dot_bfloat16;
  loops.dot_operations = 4 * kPairs * kAccumulators;
  return loops;
}

}  // namespace earnest::limits
#endif
