// SPDX-License-Identifier: Apache-2.0
// Sums over the members of a group that have the same bits in any order, so that integer atomics may add them
// up as they come: numbers are rounded once, to multiples of a power of two that follows from the group's
// largest magnitude and its size alone, and as integers their sum is exact (reproducible summation by
// pre-rounding, Demmel and Nguyen 2013). Of n members below 2^e a number keeps the bits down to
// 2^(e - 62 + log2 n): beyond double's own up to 512 members, 42 of them for a million.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest::ppo::group_sums {

constexpr int kSumBits = 62;

// The least e with n <= 2^e.
EARNEST_HOST_DEVICE inline int bits_of(uint32_t n) {
  int bits = 0;
  while (bits < 32 && (uint64_t{1} << bits) < n) ++bits;
  return bits;
}

// The bits of a magnitude order as it does. e with magnitude < 2^e.
EARNEST_HOST_DEVICE inline int exponent_of(uint64_t magnitude) {
  return static_cast<int>(magnitude >> 52) - 1022;
}

// x 2^-e, |x| < 2^e, as one of n such integers.
EARNEST_HOST_DEVICE inline int64_t rounded(double x, int e, uint32_t n) {
  return llrint(scalbn(x, kSumBits - bits_of(n) - e));
}
EARNEST_HOST_DEVICE inline double widened(int64_t sum, int e, uint32_t n) {
  return scalbn(static_cast<double>(sum), e - kSumBits + bits_of(n));
}

// What is known of a group, at the place of one of its members: its leader.
struct Record {
  unsigned long long most;      // bits of the largest magnitude
  unsigned long long total;     // of the scores
  unsigned long long farthest;  // bits of the largest distance from the mean
  unsigned long long squares;   // of the distances
  uint32_t members;
};

EARNEST_HOST_DEVICE inline double mean_of(const Record& r) {
  return widened(static_cast<int64_t>(r.total), exponent_of(r.most), r.members) / r.members;
}
EARNEST_HOST_DEVICE inline double sum_of_squares(const Record& r) {
  const double sum = widened(static_cast<int64_t>(r.squares), 0, r.members);
  return scalbn(sum, 2 * exponent_of(r.farthest));
}

// The workspace.
constexpr uint32_t kNobody = 0xffffffffu;
struct Workspace {
  Record* records;    // [samples]
  uint32_t* leaders;  // [samples]
  uint32_t* table;    // [places] of leaders, found by their group's hash
};

// A power of two, at least twice the groups.
constexpr int64_t num_places(int64_t samples) {
  int64_t places = 2;
  while (places < 2 * samples) places *= 2;
  return places;
}
constexpr size_t workspace_bytes(int64_t samples) {
  return static_cast<size_t>(samples) * (sizeof(Record) + sizeof(uint32_t)) +
         static_cast<size_t>(num_places(samples)) * sizeof(uint32_t);
}
inline Workspace workspace_at(void* memory, int64_t samples) {
  auto* records = static_cast<Record*>(memory);
  auto* leaders = reinterpret_cast<uint32_t*>(records + samples);
  return {records, leaders, leaders + samples};
}

}  // namespace earnest::ppo::group_sums
