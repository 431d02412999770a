// SPDX-License-Identifier: Apache-2.0
// What the kernels of attention over pages are given, and how they read what the device alone knows: which
// sequences there are and how long. Entries that cannot be are found here, before anything is done with them.
#pragma once

#include <cstdint>

#include "kernels/attention/paged_backend.h"
#include "kernels/attention/paged_checks.h"
#include "kernels/attention/paged_plan.h"
#include "kernels/common/record_fault.h"
#include "kernels/common/simt.h"

namespace earnest::attention::paged {
namespace {

struct Job {
  const void *q, *k, *v;
  void* out;
  float* lse;
  const int32_t *page_table, *lengths, *cu_seqlens_q;
  int64_t sequences, tokens, kv_heads, pages, table_pages;
  int heads, group, queries, slices;  // slices: row_slices
  int page_shift, piece_shift;        // of 2
  int stages;
  float scale;
  const float *k_scale, *v_scale;  // [kv_heads]; null: 1
  int64_t most_pieces;
  float* part_outputs;  // [part_rows, dim], not yet divided by the sum of weights
  float2* part_sums;    // [part_rows]: highest score, sum of weights relative to it
  FaultWord* fault;
};

__device__ inline void record(const Job& job, int64_t sequence, int argument) {
  if (job.fault != nullptr) record_fault(job.fault, {FaultOp::kPagedAttention, sequence, argument});
}

struct Sequence {
  int begin;    // its first row of q
  int queries;  // 0: there is nothing to do
  int length;   // keys; 0 where they are not to be read
  bool bad_bounds, bad_length;
};

__device__ inline Sequence sequence_at(const Job& job, int64_t n) {
  Sequence s = {static_cast<int>(n * job.queries), job.queries, job.lengths[n], false, false};
  if (job.cu_seqlens_q != nullptr) {
    const int64_t begin = job.cu_seqlens_q[n], end = job.cu_seqlens_q[n + 1];
    s.bad_bounds = begin < 0 || end < begin || end > job.tokens || end - begin > job.queries;
    s.begin = static_cast<int>(begin);
    s.queries = s.bad_bounds ? 0 : static_cast<int>(end - begin);
  }
  s.bad_length = s.length < 0 || s.length > job.table_pages << job.page_shift;
  if (s.bad_length) s.length = 0;
  return s;
}

__device__ inline int pieces_at(const Job& job, int64_t n, bool records) {
  const Sequence s = sequence_at(job, n);
  if (records && s.bad_bounds) record(job, n, faults::kBounds);
  if (records && s.bad_length && s.queries > 0) record(job, n, faults::kLength);
  return s.queries == 0 ? 0 : static_cast<int>(pieces_of(s.length, job.piece_shift));
}

// What scores of a key head are multiplied by, the same for powers of two, and its values.
struct Scales {
  float score, score_log2, value;
};

// False, and a record, if the cache's own scale of the head cannot be.
__device__ inline bool scales_of(const Job& job, int64_t kv_head, Scales* scales) {
  const float of_keys = job.k_scale == nullptr ? 1.0f : job.k_scale[kv_head];
  const float of_values = job.v_scale == nullptr ? 1.0f : job.v_scale[kv_head];
  const float score = job.scale * of_keys;
  *scales = {score, score * 1.44269504f, of_values};
  if (is_scale(of_keys) && is_scale(of_values)) return true;
  record(job, kv_head, faults::kScale);
  return false;
}

// How far a block has come through the pieces of all sequences, counted one after the other. No table of them
// is made: a warp walks, a sequence a lane.
struct Walk {
  int sequence;  // of lane 0
  int before;    // pieces of the sequences before it
};
struct Piece {
  int sequence, index;
};

// The piece with this number, not less than the last one asked for; false behind the last. The whole warp.
__device__ inline bool walk_to(const Job& job, int number, Walk& walk, Piece* piece) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (; walk.sequence < job.sequences; walk.sequence += 32) {
    const int n = walk.sequence + lane;
    const int pieces = n < job.sequences ? pieces_at(job, n, blockIdx.x == 0 && threadIdx.x < 32) : 0;
    int upto = pieces;  // of the lanes so far
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int others = __shfl_up_sync(simt::kFullWarp, upto, static_cast<unsigned>(step));
      if (lane >= step) upto += others;
    }
    const unsigned beyond = __ballot_sync(simt::kFullWarp, walk.before + upto > number);
    if (beyond != 0) {
      const int found = __ffs(static_cast<int>(beyond)) - 1;
      const int skipped = __shfl_sync(simt::kFullWarp, upto - pieces, found);
      *piece = {walk.sequence + found, number - walk.before - skipped};
      return true;
    }
    walk.before += __shfl_sync(simt::kFullWarp, upto, 31);
  }
  return false;
}

}  // namespace
}  // namespace earnest::attention::paged
