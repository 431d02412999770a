// SPDX-License-Identifier: Apache-2.0
// The CUDA back end's small kernels, a warp or a thread for a row: parts of a row joined to its results, its
// gradients turned into factors, and rows with one target strung together.
#pragma once

#include "kernels/common/record_fault.h"
#include "kernels/logprob/logprob_jobs.h"

namespace earnest::logprob::gpu {

constexpr int kRowThreads = 256, kRowsOfBlock = kRowThreads / simt::kWarpSize;

template <typename T>
struct RowResults {
  int64_t rows, vocabulary;
  const int64_t* targets;
  const Part<T>* parts;
  int64_t part_count;
  const T* target_logits;
  T *logp, *entropy, *lse;
  FaultWord* fault;
};

// A warp per row. Its parts are joined in double: each lane's every 32nd in order, then the lanes in a tree.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) join_parts(const RowResults<T> r) {
  const int lane = static_cast<int>(threadIdx.x) % simt::kWarpSize;
  const int64_t row = blockIdx.x * int64_t{kRowsOfBlock} + threadIdx.x / simt::kWarpSize;
  if (row >= r.rows) return;
  const Part<T>* parts = r.parts + row * r.part_count;
  T max = kNoMax;
  for (int64_t i = lane; i < r.part_count; i += simt::kWarpSize) max = larger(max, parts[i].max);
  for (int distance = 16; distance > 0; distance /= 2)
    max = larger(max, __shfl_xor_sync(simt::kFullWarp, max, distance));
  double sum = 0, product = 0;
  for (int64_t i = lane; i < r.part_count; i += simt::kWarpSize) {
    const T past = bounded(parts[i].max - max);
    const double factor = exp_of(past);
    sum += factor * parts[i].sum;
    product += factor * (parts[i].product + static_cast<double>(parts[i].sum) * past);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(simt::kFullWarp, sum, distance);
    product += __shfl_xor_sync(simt::kFullWarp, product, distance);
  }
  if (lane != 0) return;
  const bool known = is_target(r.targets[row], r.vocabulary);
  if (!known && r.fault != nullptr) record_fault(r.fault, {FaultOp::kLogProb, row, 0});
  // No logit above -inf (and a largest of +inf, and NaN): the row has no distribution.
  const double log_sum = sum == 0 ? NAN : log(sum);
  r.lse[row] = static_cast<T>(max + log_sum);
  r.logp[row] = static_cast<T>(known ? static_cast<double>(r.target_logits[row]) - max - log_sum : NAN);
  r.entropy[row] = static_cast<T>(log_sum - product / sum);
}

template <typename T>
struct RowGradients {
  int64_t rows, vocabulary;
  const int64_t* targets;
  double inverse_temperature;
  const T *entropy, *lse, *grad_logp, *grad_entropy, *grad_lse;  // a null gradient means zeros
  FaultWord* fault;
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads) prepare_rows(const RowGradients<T> g, RowSlope<T>* slopes) {
  const int64_t row = blockIdx.x * int64_t{kRowThreads} + threadIdx.x;
  if (row >= g.rows) return;
  const auto at = [row](const T* values) {
    return values == nullptr ? 0.0 : static_cast<double>(values[row]);
  };
  const bool known = is_target(g.targets[row], g.vocabulary);
  if (!known && g.fault != nullptr) record_fault(g.fault, {FaultOp::kLogProb, row, 0});
  const double a = at(g.grad_logp), e = at(g.grad_entropy);
  const double factor = known ? g.inverse_temperature : NAN;
  slopes[row] = {g.lse[row], static_cast<T>((a - at(g.grad_lse) + e * g.entropy[row]) * factor),
                 static_cast<T>(e * factor), static_cast<T>(a * factor)};
}

// For each row the next one with the same target, and for each target its first row; `first` holds -1 before.
// Each thread looks through all rows for its own.
__global__ void __launch_bounds__(kRowThreads)
    link_targets(const int64_t* targets, int64_t rows, int64_t vocabulary, int32_t* first, int32_t* next) {
  EARNEST_SHARED(int32_t, some, kRowThreads);
  const int64_t row = blockIdx.x * int64_t{kRowThreads} + threadIdx.x;
  const int64_t target = row < rows ? targets[row] : -1;
  const bool known = is_target(target, vocabulary);
  bool earlier = false;
  int32_t later = -1;
  for (int64_t base = 0; base < rows; base += kRowThreads) {
    const int64_t other = base + threadIdx.x;
    __syncthreads();
    some[threadIdx.x] =
        other < rows && is_target(targets[other], vocabulary) ? static_cast<int32_t>(targets[other]) : -1;
    __syncthreads();
    for (int i = 0; i < kRowThreads; ++i) {
      if (some[i] != target || !known) continue;
      earlier = earlier || base + i < row;
      if (later < 0 && base + i > row) later = static_cast<int32_t>(base + i);
    }
  }
  if (row >= rows) return;
  next[row] = later;
  if (known && !earlier) first[target] = static_cast<int32_t>(row);
}

}  // namespace earnest::logprob::gpu
