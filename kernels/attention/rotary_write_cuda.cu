// SPDX-License-Identifier: Apache-2.0
// Bias, rotary positions and the write to pages on a GPU: a block takes a token, a thread eight pairs of a
// head, 16 bytes each way. The angles of a token, dim / 2 of them, are made once for all its heads.
#include <bit>

#include "kernels/attention/rotary_turn.h"
#include "kernels/attention/rotary_write_backend.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/record_fault.h"
#include "kernels/common/simt.h"

namespace earnest::attention::rotary_write {
namespace {

constexpr const char* kOp = "rotary_write";
constexpr int kThreads = 128;
constexpr int kMostDim = 128;

struct Job {
  const BFloat16 *qkv, *bias;
  const int64_t *positions, *slots;
  BFloat16 *q, *k, *v;
  int64_t heads, kv_heads, places;  // places: of all pages
  int page_shift;                   // page_size = 2^page_shift
  FaultWord* fault;
  float rates[kMostDim / 2];
};

struct alignas(16) Eight {
  BFloat16 x[8];
};

__device__ void record(const Job& job, int64_t token, int argument) {
  if (job.fault != nullptr) record_fault(job.fault, {FaultOp::kRotaryWrite, token, argument});
}

// Eight numbers of the token's row with their bias.
__device__ void load(const Job& job, const BFloat16* row, int64_t column, float (&x)[8]) {
  const Eight numbers = *reinterpret_cast<const Eight*>(row + column);
  Eight bias = {};
  if (job.bias != nullptr) bias = *reinterpret_cast<const Eight*>(job.bias + column);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = widen(numbers.x[i]) + widen(bias.x[i]);
}

__device__ void store(const float (&x)[8], BFloat16* to) {
  Eight numbers;
#pragma unroll
  for (int i = 0; i < 8; ++i) narrow(x[i], &numbers.x[i]);
  *reinterpret_cast<Eight*>(to) = numbers;
}

// Where a head of the token goes; null if it is not kept.
__device__ BFloat16* place_of(const Job& job, int64_t token, int64_t slot, int64_t head, int dim) {
  if (head < job.heads) return job.q + (token * job.heads + head) * dim;
  if (slot < 0) return nullptr;
  const bool is_key = head < job.heads + job.kv_heads;
  const int64_t kv_head = head - job.heads - (is_key ? 0 : job.kv_heads), page = slot >> job.page_shift;
  const int64_t in_page = slot & ((int64_t{1} << job.page_shift) - 1);
  return (is_key ? job.k : job.v) + (((page * job.kv_heads + kv_head) << job.page_shift) + in_page) * dim;
}

template <int kDim>
__global__ void __launch_bounds__(kThreads) turn_and_write(const Job job) {
  constexpr int kHalf = kDim / 2, kOfHead = kHalf / 8;
  EARNEST_SHARED(float, cosines, kHalf);
  EARNEST_SHARED(float, sines, kHalf);
  const int64_t token = blockIdx.x, position = job.positions[token];
  const int thread = static_cast<int>(threadIdx.x);
  int64_t slot = job.slots[token];
  const bool good_position = position >= 0 && position <= kLastPosition,
             good_slot = slot >= -1 && slot < job.places;
  if (!good_position || !good_slot) slot = -1;
  if (thread == 0 && !good_position) record(job, token, faults::kPosition);
  if (thread == 0 && !good_slot) record(job, token, faults::kSlot);
  if (thread < kHalf) {
    const Turn turn = turn_by(static_cast<float>(good_position ? position : 0) * job.rates[thread]);
    cosines[thread] = good_position ? turn.cosine : NAN;
    sines[thread] = turn.sine;
  }
  __syncthreads();

  const int64_t heads = job.heads + 2 * job.kv_heads;
  const BFloat16* row = job.qkv + token * heads * kDim;
  for (int64_t i = thread; i < heads * kOfHead; i += kThreads) {
    const int64_t head = i / kOfHead;
    const int j = static_cast<int>(i % kOfHead) * 8;
    BFloat16* to = place_of(job, token, slot, head, kDim);
    if (to == nullptr) continue;
    float first[8], second[8];
    load(job, row, head * kDim + j, first);
    load(job, row, head * kDim + kHalf + j, second);
    if (head < job.heads + job.kv_heads) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float a = first[n], b = second[n], c = cosines[j + n], s = sines[j + n];
        first[n] = a * c - b * s;
        second[n] = b * c + a * s;
      }
    }
    store(first, to + j);
    store(second, to + kHalf + j);
  }
}

}  // namespace

Status run_cuda(const Params& p) {
  Job job = {};
  job.qkv = static_cast<const BFloat16*>(p.qkv);
  job.bias = static_cast<const BFloat16*>(p.bias);
  job.positions = p.positions, job.slots = p.slots;
  job.q = static_cast<BFloat16*>(p.q), job.k = static_cast<BFloat16*>(p.k),
  job.v = static_cast<BFloat16*>(p.v);
  job.heads = p.heads, job.kv_heads = p.kv_heads, job.places = p.pages * p.page_size;
  job.page_shift = std::countr_zero(static_cast<uint64_t>(p.page_size));
  job.fault = p.fault;
  rates_of(p.dim, p.theta, job.rates);
  return simt::launch({kOp, "turn_and_write"}, p.dim == 64 ? turn_and_write<64> : turn_and_write<128>,
                      dim3(static_cast<unsigned>(p.tokens)), dim3(kThreads), 0, p.stream, job);
}

}  // namespace earnest::attention::rotary_write
