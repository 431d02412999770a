// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "kernels/common/limits_loops.h"

namespace earnest::limits {
namespace {

float read(const float* data, int64_t count) {
  float sums[kAccumulators] = {};
  for (int64_t i = 0; i < count; i += kAccumulators) {
    for (int lane = 0; lane < kAccumulators; ++lane) sums[lane] += data[i + lane];
  }
  float sum = 0;
  for (float x : sums) sum += x;
  return sum;
}

void copy(const float* from, float* to, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

float multiply_add(int64_t rounds) {
  float sums[kAccumulators];  // start apart, or the compiler sees that all chains are one
  for (int j = 0; j < kAccumulators; ++j) sums[j] = static_cast<float>(j);
  for (int64_t round = 0; round < rounds; ++round) {
    for (float& x : sums) x = x * 0.5f + 1.0f;
  }
  float sum = 0;
  for (float x : sums) sum += x;
  return sum;
}

}  // namespace

Loops scalar_loops() { return {read, copy, multiply_add, 2 * kAccumulators, nullptr, 0}; }

}  // namespace earnest::limits
