// SPDX-License-Identifier: Apache-2.0
// Three passes over logits in the second cache: the largest, sums of weights by blocks, and for each row a
// warp that adds those sums one after the other, as the CPU does, and walks through one block's weights.
// Weights are computed again where they are needed rather than kept. In float64, not fused: sampling.h.
#include <cmath>

#include "kernels/common/cuda.h"
#include "kernels/common/simt.h"
#include "kernels/sampling/draws_plan.h"
#include "kernels/sampling/exponential.h"

namespace earnest::sampling {
namespace {

using simt::kFullWarp;
using simt::kWarpSize;

constexpr char kOp[] = "generate";
constexpr int kSuppressThreads = 128;

__device__ inline int lane() { return static_cast<int>(threadIdx.x % kWarpSize); }

__global__ void __launch_bounds__(kSuppressThreads) suppress(const Draws job) {
  const Suppressed range = job.suppressed[blockIdx.x];
  BFloat16* const logits = job.logits + range.row * job.count + range.first;
  for (int64_t i = threadIdx.x; i < range.count; i += kSuppressThreads)
    if (!std::isnan(widen(logits[i]))) logits[i] = BFloat16{0xff80};
}

// NaN before all, then the larger, then the earlier.
__device__ inline Largest larger(const Largest& a, const Largest& b) {
  if (std::isnan(a.logit) || std::isnan(b.logit)) return std::isnan(a.logit) ? a : b;
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.at < b.at ? a : b;
}

__device__ inline Largest largest_of_warp(Largest mine) {
  for (int apart = kWarpSize / 2; apart > 0; apart /= 2)
    mine = larger(
        mine, {__shfl_xor_sync(kFullWarp, mine.logit, apart), __shfl_xor_sync(kFullWarp, mine.at, apart)});
  return mine;
}

__global__ void __launch_bounds__(kSliceThreads) find_largest(const Draws job, const DrawsWorkspace kept) {
  constexpr int kWarps = kSliceThreads / kWarpSize;
  EARNEST_SHARED(float, logits_of_warps, kWarps);
  EARNEST_SHARED(int, places_of_warps, kWarps);
  const int64_t row = blockIdx.y, first = blockIdx.x * kSlice;
  const int64_t end = first + kSlice < job.count ? first + kSlice : job.count;
  const BFloat16* const logits = job.logits + row * job.count;
  Largest mine = {widen(logits[first]), static_cast<int32_t>(first)};
  for (int64_t i = first + threadIdx.x; i < end; i += kSliceThreads)
    mine = larger(mine, {widen(logits[i]), static_cast<int32_t>(i)});
  mine = largest_of_warp(mine);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (lane() == 0) logits_of_warps[warp] = mine.logit, places_of_warps[warp] = mine.at;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kWarps; ++i) mine = larger(mine, {logits_of_warps[i], places_of_warps[i]});
  kept.largest[row * slices_of(job.count) + blockIdx.x] = mine;
}

// Every warp for itself.
__device__ inline Largest largest_of_row(const Draws& job, const DrawsWorkspace& kept, int64_t row) {
  const int64_t slices = slices_of(job.count);
  const Largest* const all = kept.largest + row * slices;
  Largest mine = all[0];
  for (int64_t i = lane(); i < slices; i += kWarpSize) mine = larger(mine, all[i]);
  return largest_of_warp(mine);
}

class Weights {
 public:
  __device__ Weights(const Draws& job, int64_t row, float most)
      : logits_(job.logits + row * job.count), most_(most), by_(job.temperatures[row]) {}
  __device__ double operator[](int64_t i) const {
    const double below = static_cast<double>(widen(logits_[i])) - most_;
    return exponential(by_ == 1 ? below : below / by_);
  }

 private:
  const BFloat16* logits_;
  double most_, by_;
};

__global__ void __launch_bounds__(kSliceThreads) add_blocks(const Draws job, const DrawsWorkspace kept) {
  const int64_t row = blockIdx.y, blocks = blocks_of(job.count);
  const float most = largest_of_row(job, kept, row).logit;
  if (job.temperatures[row] == 0 || !std::isfinite(most)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t block = int64_t{blockIdx.x} * kBlocksOfSlice + thread / kChains;
  const int64_t end = (block + 1) * kBlock < job.count ? (block + 1) * kBlock : job.count;
  const Weights weights(job, row, most);
  double sum = 0;
#pragma unroll 4
  for (int64_t i = block * kBlock + thread % kChains; i < end; i += kChains) sum += weights[i];
  for (int apart = 1; apart < kChains; apart *= 2) sum += __shfl_xor_sync(kFullWarp, sum, apart);
  if (thread % kChains == 0 && block < blocks) kept.sums[row * blocks + block] = sum;
}

// The numbers x(0), x(1), ... in order, 32 read at a time: all lanes see each, and stop together where `see`
// says so. Whether it did.
template <typename Numbers, typename See>
__device__ inline bool walk(int64_t begin, int64_t end, const Numbers& numbers, const See& see) {
  for (int64_t first = begin; first < end; first += kWarpSize) {
    const double mine = first + lane() < end ? numbers(first + lane()) : 0;
    for (int i = 0; i < kWarpSize; ++i) {
      const double number = __shfl_sync(kFullWarp, mine, i);
      if (first + i < end && see(first + i, number)) return true;
    }
  }
  return false;
}

// As `draw` of sampling.h.
__device__ inline int64_t draw_from(const Draws& job, const DrawsWorkspace& kept, int64_t row, float most) {
  const Weights weights(job, row, most);
  const int64_t blocks = blocks_of(job.count);
  const double* const sums = kept.sums + row * blocks;
  const auto sum_at = [&](int64_t block) { return sums[block]; };
  const auto weight_at = [&](int64_t i) { return weights[i]; };
  double sum = 0, reached = 0;
  walk(0, blocks, sum_at, [&](int64_t, double one) {
    sum += one;
    return false;
  });
  const double aim = job.uniforms[row] * sum;
  int64_t within = blocks - 1, token = 0;
  walk(0, blocks - 1, sum_at, [&](int64_t block, double one) {
    if (reached + one <= aim) {
      reached += one;
      return false;
    }
    within = block;
    return true;
  });
  const bool found = walk(within * kBlock, job.count, weight_at, [&](int64_t i, double weight) {
    reached += weight;
    token = i;
    return reached > aim;
  });
  if (found) return token;
  walk(0, job.count, weight_at, [&](int64_t i, double weight) {  // rounding left the sum below the aim
    if (weight != 0) token = i;
    return false;
  });
  return token;
}

__global__ void __launch_bounds__(kWarpSize) draw_tokens(const Draws job, const DrawsWorkspace kept) {
  const int64_t row = blockIdx.x;
  const Largest most = largest_of_row(job, kept, row);
  int32_t token = most.at;
  if (!std::isfinite(most.logit)) {
    token = most.logit < 0 ? kNoneToDraw : kNotFinite;
  } else if (job.temperatures[row] != 0) {
    token = static_cast<int32_t>(draw_from(job, kept, row, most.logit));
  }
  if (lane() == 0) job.tokens[row] = token;
}

}  // namespace

Status draw_on_device(const Draws& job, void* workspace) {
  const DrawsWorkspace kept(job, workspace);
  const auto rows = static_cast<unsigned>(job.rows);
  const dim3 slices(static_cast<unsigned>(slices_of(job.count)), rows), threads(kSliceThreads);
  const auto put = [&](const char* name, auto kernel, dim3 grid, dim3 block, auto... arguments) {
    return simt::launch({kOp, name}, kernel, grid, block, 0, job.stream, job, arguments...);
  };
  if (job.ranges > 0) {
    const dim3 ranges(static_cast<unsigned>(job.ranges));
    if (Status status = put("suppress", suppress, ranges, dim3(kSuppressThreads)); !status.ok())
      return status;
  }
  if (Status status = put("find_largest", find_largest, slices, threads, kept); !status.ok()) return status;
  if (Status status = put("add_blocks", add_blocks, slices, threads, kept); !status.ok()) return status;
  return put("draw_tokens", draw_tokens, dim3(rows), dim3(kWarpSize), kept);
}

}  // namespace earnest::sampling
