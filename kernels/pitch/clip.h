// SPDX-License-Identifier: Apache-2.0
// A clip on its way to frames: raw samples of 16 kHz, whole or as many as a stream holds, and the half-band
// filter's samples of 8 kHz made of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/pitch/pitch_backend.h"

namespace earnest::pitch {

struct Raw {
  const float* held;  // samples [first, samples)
  int64_t first = 0;
  int64_t samples = 0;  // that there are so far
  bool ended = false;   // then the last sample goes on; the first always does, backwards
};

constexpr int64_t kHalvedBlock = 256;

// How many filtered samples the raw ones allow.
inline int64_t halved_count(const Raw& raw) {
  if (raw.ended) return (raw.samples + 1) / 2;
  return raw.samples <= kReach ? 0 : (raw.samples - kReach + 1) / 2;
}

// Filtered samples [begin, end) to out, at most kHalvedBlock of them.
inline void halve_block(const Backend& backend, const Tables& tables, const Raw& raw, int64_t begin,
                        int64_t end, float* out) {
  constexpr int64_t kReads = 2 * kHalvedBlock + 2 * kReach + 2 * kMaxLanes;
  float from[kReads], to[kHalvedBlock];
  const int64_t start = 2 * begin - kReach, reads = 2 * (end - begin) + 2 * kReach + 2 * kMaxLanes;
  const int64_t low = std::max<int64_t>(start, 0), high = std::min(start + reads, raw.samples);
  std::fill(from, from + (low - start), raw.held[std::max<int64_t>(low - raw.first, 0)]);
  std::copy(raw.held + (low - raw.first), raw.held + (high - raw.first), from + (low - start));
  std::fill(from + (high - start), from + reads, raw.held[raw.samples - 1 - raw.first]);
  backend.halve(tables, from, end - begin, to);
  std::copy(to, to + (end - begin), out);
}

// Filtered samples [first, samples); those of a frame in place where they lie in one piece, else in scratch.
struct Halved {
  const float* held;
  int64_t first = 0;
  int64_t samples = 0;
};

// Whether frame t can be computed: the samples that are there cover it, or no more will come.
inline bool covers(const Tables& tables, int64_t halved_samples, bool ended, int64_t t) {
  return ended || kHalvedHop * t - tables.width / 2 + tables.width <= halved_samples;
}

inline void compute_frame(const Backend& backend, const Tables& tables, const Raw& raw, const Halved& halved,
                          int64_t t, Candidates* out) {
  float scratch[kMaxWidth];
  const int64_t start = kHalvedHop * t - tables.width / 2;
  const int64_t low = std::max<int64_t>(start, 0);
  const int64_t high = std::min(start + tables.width, halved.samples);
  const float* samples = halved.held + (low - halved.first);
  if (high - low < tables.width) {
    std::fill(scratch, scratch + tables.width, 0.0f);
    std::copy(samples, samples + (high - low), scratch + (low - start));
    samples = scratch;
  }
  const int64_t begin = std::max<int64_t>(kHop * (t - 1), 0), end = std::min(kHop * (t + 1), raw.samples);
  backend.frame(tables, samples, static_cast<int>(low - start), static_cast<int>(high - start),
                raw.held + (begin - raw.first), static_cast<int>(end - begin), out);
}

}  // namespace earnest::pitch
