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

constexpr int kLanes = 16;

float read(const float* data, int64_t count) {
  __m512 sums[8] = {};
  for (int64_t i = 0; i < count; i += 8 * kLanes) {
    for (int j = 0; j < 8; ++j) sums[j] = _mm512_add_ps(sums[j], _mm512_load_ps(data + i + j * kLanes));
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return sum_of_lanes(sums[0]);
}

void copy(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) _mm512_stream_ps(to + i, _mm512_load_ps(from + i));
  _mm_sfence();
}

float multiply_add(int64_t rounds) {
  const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1.0f);
  __m512 sums[kAccumulators];  // start apart, or the compiler sees that all chains are one
  for (int j = 0; j < kAccumulators; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  for (int64_t round = 0; round < rounds; ++round) {
    for (__m512& x : sums) x = _mm512_fmadd_ps(x, half, one);
  }
  for (int j = 1; j < kAccumulators; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return sum_of_lanes(sums[0]);
}

}  // namespace

Loops avx512_loops() { return {read, copy, multiply_add, 2 * kLanes * kAccumulators, nullptr, 0}; }

}  // namespace earnest::limits
#endif
