// SPDX-License-Identifier: Apache-2.0
// How a row of logits is shared out over a GPU, and what is kept of it on the way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/sampling/draws.h"
#include "kernels/sampling/sampling.h"

namespace earnest::sampling {

// A block of threads takes a slice of 16 blocks of weights, eight threads each: a thread for each partial
// sum.
constexpr int kChains = 8, kBlocksOfSlice = 16, kSliceThreads = kChains * kBlocksOfSlice;
constexpr int64_t kSlice = kBlocksOfSlice * kBlock;

constexpr int32_t kNotFinite = -1, kNoneToDraw = -2;  // in place of a token

constexpr int64_t slices_of(int64_t count) { return (count + kSlice - 1) / kSlice; }

// The largest logit of a slice and the first place where it is; NaN where there is one.
struct Largest {
  float logit;
  int32_t at;
};

// The workspace: sums [rows, blocks_of(count)], then the largest [rows, slices_of(count)].
struct DrawsWorkspace {
  DrawsWorkspace(const Draws& job, void* workspace)
      : sums(static_cast<double*>(workspace)),
        largest(reinterpret_cast<Largest*>(sums + job.rows * blocks_of(job.count))) {}
  static size_t bytes(const Draws& job) {
    return static_cast<size_t>(job.rows) * (static_cast<size_t>(blocks_of(job.count)) * sizeof(double) +
                                            static_cast<size_t>(slices_of(job.count)) * sizeof(Largest));
  }
  double* sums;
  Largest* largest;
};

}  // namespace earnest::sampling
