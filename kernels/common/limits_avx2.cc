// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/common/limits_loops.h"

namespace earnest::limits {
namespace {

constexpr int kLanes = 8, kUsed = 12;  // 16 registers: 12 chains and two operands

float sum_of(const __m256* sums, int count) {
  alignas(32) float lanes[kLanes];
  float sum = 0;
  for (int i = 0; i < count; ++i) {
    _mm256_store_ps(lanes, sums[i]);
    for (float x : lanes) sum += x;
  }
  return sum;
}

float read(const float* data, int64_t count) {
  __m256 sums[8] = {};
  for (int64_t i = 0; i < count; i += 8 * kLanes) {
    for (int j = 0; j < 8; ++j) sums[j] = _mm256_add_ps(sums[j], _mm256_load_ps(data + i + j * kLanes));
  }
  return sum_of(sums, 8);
}

void copy(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) _mm256_stream_ps(to + i, _mm256_load_ps(from + i));
  _mm_sfence();
}

float multiply_add(int64_t rounds) {
  const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1.0f);
  __m256 sums[kUsed];  // start apart, or the compiler sees that all chains are one
  for (int j = 0; j < kUsed; ++j) sums[j] = _mm256_set1_ps(static_cast<float>(j));
  for (int64_t round = 0; round < rounds; ++round) {
    for (__m256& x : sums) x = _mm256_fmadd_ps(x, half, one);
  }
  return sum_of(sums, kUsed);
}

}  // namespace

Loops avx2_loops() { return {read, copy, multiply_add, 2 * kLanes * kUsed, nullptr, 0}; }

}  // namespace earnest::limits
#endif
