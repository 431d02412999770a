// SPDX-License-Identifier: Apache-2.0
// Masked moments and whitening on a GPU. A thread takes sixteen of its block's tokens at a time: their mean,
// then squares about it; moments are joined thread by thread, warp by warp, block by block, always in the
// same order.
#include <cmath>

#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/ppo/loss_blocks.h"
#include "kernels/ppo/ppo_cuda.h"

namespace earnest::ppo {
namespace {

using namespace loss_blocks;
using simt::kFullWarp;

constexpr int kWarps = kThreads / 32;
constexpr int kTogether = 16;  // tokens of a thread whose mean is taken at once

template <typename T>
__device__ Moments moments_of(const MomentsParams<T>& p, int64_t first, int64_t end) {
  T x[kTogether];
  bool chosen[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t t = first + i * kThreads;
    chosen[i] = t < end && p.trainable[t] != 0;
    x[i] = t < end ? p.x[t] : T(0);
  }
  Moments m;
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (!chosen[i]) continue;
    if (!std::isfinite(x[i])) record_fault(p.fault, {FaultOp::kWhiten, first + i * kThreads, 0});
    m.count += 1.0;
    m.mean += x[i];
  }
  m.mean = m.count > 0.0 ? m.mean / m.count : 0.0;
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const double distance = chosen[i] ? x[i] - m.mean : 0.0;
    m.m2 += distance * distance;
  }
  return m;
}

// Of all threads of the block; thread 0 gets it.
__device__ Moments block_moments(Moments m, simt::Shared<double> scratch) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Moments other{__shfl_down_sync(kFullWarp, m.count, step), __shfl_down_sync(kFullWarp, m.mean, step),
                        __shfl_down_sync(kFullWarp, m.m2, step)};
    m = join(m, other);  // what lanes make of each other's beyond the end is never used
  }
  if (threadIdx.x % 32 == 0) {
    const auto row = scratch + 3 * (threadIdx.x / 32);
    row[0] = m.count, row[1] = m.mean, row[2] = m.m2;
  }
  __syncthreads();
  Moments all;
  for (int i = 0; threadIdx.x == 0 && i < kWarps; ++i)
    all = join(all, {scratch[3 * i], scratch[3 * i + 1], scratch[3 * i + 2]});
  __syncthreads();
  return all;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    join_moments(MomentsParams<T> p, Header* header, Moments* rows, int64_t of_block, Moments* out) {
  EARNEST_SHARED(double, scratch, 3 * kWarps);
  EARNEST_SHARED(int, is_last, 1);
  const int64_t begin = blockIdx.x * of_block,
                end = begin + of_block < p.tokens ? begin + of_block : p.tokens;
  Moments mine;
  for (int64_t t = begin + threadIdx.x; t < end; t += kTogether * kThreads)
    mine = join(mine, moments_of(p, t, end));
  const Moments of_all = block_moments(mine, scratch);
  if (threadIdx.x == 0) {
    rows[blockIdx.x] = of_all;
    __threadfence();
    is_last[0] = atomicAdd(&header->ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last[0]) return;
  __threadfence();
  mine = {};
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) mine = join(mine, rows[i]);
  const Moments total = block_moments(mine, scratch);
  if (threadIdx.x == 0) *out = total;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) whiten_tokens(WhitenParams<T> p, int64_t of_block) {
  EARNEST_SHARED(double, scaling, 2);
  if (threadIdx.x == 0) {
    const Moments m = p.moments_on_device ? *p.moments_on_device : p.moments;
    scaling[0] = m.mean;
    scaling[1] = inverse_std(m.count > 0.0 ? m.m2 / m.count : 0.0, p.eps, p.min_std);
  }
  __syncthreads();
  const double mean = scaling[0], scale = scaling[1];
  const int64_t begin = blockIdx.x * of_block,
                end = begin + of_block < p.tokens ? begin + of_block : p.tokens;
#pragma unroll 4
  for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) {
    const T x = p.x[t];
    p.out[t] = p.trainable[t] ? static_cast<T>((x - mean) * scale) : T(0);
  }
}

}  // namespace

template <typename T>
Status moments_cuda(const MomentsParams<T>& p, Moments* moments, void* workspace) {
  cuda::Properties device;
  if (Status status = cuda::properties("whiten", &device); !status.ok()) return status;
  if (p.tokens < 0) return invalid_argument("whiten", "x", "at least 0 tokens", std::to_string(p.tokens));
  if (p.fault == nullptr) return invalid_argument("whiten", "fault", "a word on the device", "none");
  if (workspace == nullptr) return invalid_argument("whiten", "workspace", "memory on the device", "none");
  auto* header = static_cast<Header*>(workspace);
  static_assert(sizeof(Moments) <= kColumns * sizeof(double));
  if (Status status = cuda::fill("whiten", header, 0, sizeof *header, p.stream); !status.ok()) return status;
  return simt::launch({"whiten", "join_moments"}, join_moments<T>,
                      static_cast<unsigned>(num_blocks(p.tokens)), kThreads, 0, p.stream, p, header,
                      reinterpret_cast<Moments*>(header + 1), tokens_of_block(p.tokens), moments);
}

template <typename T>
Status whiten_cuda(const WhitenParams<T>& p) {
  cuda::Properties device;
  if (Status status = cuda::properties("whiten", &device); !status.ok()) return status;
  if (p.tokens < 0) return invalid_argument("whiten", "x", "at least 0 tokens", std::to_string(p.tokens));
  if (p.tokens == 0) return {};
  return simt::launch({"whiten", "whiten_tokens"}, whiten_tokens<T>,
                      static_cast<unsigned>(num_blocks(p.tokens)), kThreads, 0, p.stream, p,
                      tokens_of_block(p.tokens));
}

template Status moments_cuda<float>(const MomentsParams<float>&, Moments*, void*);
template Status moments_cuda<double>(const MomentsParams<double>&, Moments*, void*);
template Status whiten_cuda<float>(const WhitenParams<float>&);
template Status whiten_cuda<double>(const WhitenParams<double>&);

}  // namespace earnest::ppo
