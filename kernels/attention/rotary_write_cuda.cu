// SPDX-License-Identifier: Apache-2.0
// Bias, rotary positions and the write to pages on a GPU: a block takes a token, a thread eight pairs of a
// head, 16 bytes each way. The angles of a token, dim / 2 of them, are made once for all its heads. `Number`:
// type of what is read and of queries; `Stored`: of the cache, the same or Float8.
#include <bit>
#include <cmath>

#include "kernels/attention/paged_checks.h"
#include "kernels/attention/rotary_turn.h"
#include "kernels/attention/rotary_write_backend.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/cuda.h"
#include "kernels/common/float16.h"
#include "kernels/common/float8.h"
#include "kernels/common/record_fault.h"
#include "kernels/common/simt.h"

namespace earnest::attention::rotary_write {
namespace {

constexpr const char* kOp = "rotary_write";
constexpr int kThreads = 128;
constexpr int kMostDim = 128;

struct Job {
  const void *qkv, *bias;
  const int64_t *positions, *slots;
  void *q, *k, *v;
  const float *k_scale, *v_scale;   // null: 1
  int64_t heads, kv_heads, places;  // places: of all pages
  int page_shift;                   // page_size = 2^page_shift
  FaultWord* fault;
  float rates[kMostDim / 2];
};

template <typename Stored>
struct alignas(8 * sizeof(Stored)) Eight {
  Stored x[8];
};

__device__ void record(const Job& job, int64_t token, int argument) {
  if (job.fault != nullptr) record_fault(job.fault, {FaultOp::kRotaryWrite, token, argument});
}

// Eight numbers of the token's row with their bias.
template <typename Number>
__device__ void load(const Number* row, const Number* bias_row, int64_t column, float (&x)[8]) {
  using Numbers = Eight<Number>;
  const Numbers numbers = *reinterpret_cast<const Numbers*>(row + column);
  Numbers bias = {};
  if (bias_row != nullptr) bias = *reinterpret_cast<const Numbers*>(bias_row + column);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = widen(numbers.x[i]) + widen(bias.x[i]);
}

template <typename Stored>
__device__ void store(const float (&x)[8], float scale, Stored* to) {
  Eight<Stored> numbers;
#pragma unroll
  for (int i = 0; i < 8; ++i) narrow(sizeof(Stored) == 1 ? x[i] / scale : x[i], &numbers.x[i]);
  *reinterpret_cast<Eight<Stored>*>(to) = numbers;
}

// Where key or value of a head lie in its pool.
__device__ int64_t place_of(const Job& job, int64_t slot, int64_t kv_head, int dim) {
  const int64_t page = slot >> job.page_shift, in_page = slot & ((int64_t{1} << job.page_shift) - 1);
  return (((page * job.kv_heads + kv_head) << job.page_shift) + in_page) * dim;
}

__device__ float scale_of(const float* scales, int64_t kv_head) {
  return scales == nullptr ? 1.0f : scales[kv_head];
}

// All of them, whatever is kept: a call that says nothing has looked.
__device__ void look_at_scales(const Job& job) {
  for (int64_t head = threadIdx.x; head < job.kv_heads; head += kThreads) {
    if (!paged::is_scale(scale_of(job.k_scale, head)) || !paged::is_scale(scale_of(job.v_scale, head)))
      record(job, head, faults::kScale);
  }
}

template <typename Number, typename Stored, int kDim>
__global__ void __launch_bounds__(kThreads) turn_and_write(const Job job) {
  constexpr int kHalf = kDim / 2, kOfHead = kHalf / 8;
  EARNEST_SHARED(float, cosines, kHalf);
  EARNEST_SHARED(float, sines, kHalf);
  const int64_t token = blockIdx.x, position = job.positions[token], slot = job.slots[token];
  const int thread = static_cast<int>(threadIdx.x);
  const bool good_position = position >= 0 && position <= kLastPosition;
  const bool good_slot = slot >= -1 && slot < job.places, kept = good_position && good_slot && slot >= 0;
  if (thread == 0 && !good_position) record(job, token, faults::kPosition);
  if (thread == 0 && !good_slot) record(job, token, faults::kSlot);
  if (token == 0) look_at_scales(job);
  if (thread < kHalf) {
    const Turn turn = turn_by(static_cast<float>(good_position ? position : 0) * job.rates[thread]);
    cosines[thread] = good_position ? turn.cosine : NAN;
    sines[thread] = turn.sine;
  }
  __syncthreads();

  const int64_t heads = job.heads + (kept ? 2 * job.kv_heads : 0);
  const auto *row = static_cast<const Number*>(job.qkv) + token * (job.heads + 2 * job.kv_heads) * kDim,
             *bias = static_cast<const Number*>(job.bias);
  for (int64_t i = thread; i < heads * kOfHead; i += kThreads) {
    const int64_t head = i / kOfHead, kv_head = (head - job.heads) % job.kv_heads;
    const int j = static_cast<int>(i % kOfHead) * 8;
    const bool is_query = head < job.heads, is_value = head >= job.heads + job.kv_heads;
    float first[8], second[8];
    load(row, bias, head * kDim + j, first);
    load(row, bias, head * kDim + kHalf + j, second);
    if (!is_value) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float a = first[n], b = second[n], c = cosines[j + n], s = sines[j + n];
        first[n] = a * c - b * s;
        second[n] = b * c + a * s;
      }
    }
    if (is_query) {
      Number* to = static_cast<Number*>(job.q) + (token * job.heads + head) * kDim + j;
      store(first, 1, to);
      store(second, 1, to + kHalf);
    } else if (const float scale = scale_of(is_value ? job.v_scale : job.k_scale, kv_head);
               paged::is_scale(scale)) {
      auto* to = static_cast<Stored*>(is_value ? job.v : job.k) + place_of(job, slot, kv_head, kDim) + j;
      store(first, scale, to);
      store(second, scale, to + kHalf);
    }
  }
}

template <typename Number, typename Stored>
Status run(const Params& p, const Job& job) {
  const dim3 tokens(static_cast<unsigned>(p.tokens));
  return simt::launch({kOp, "turn_and_write"},
                      p.dim == 64 ? turn_and_write<Number, Stored, 64> : turn_and_write<Number, Stored, 128>,
                      tokens, dim3(kThreads), 0, p.stream, job);
}

template <typename Number>
Status run(const Params& p, const Job& job) {
  return p.cache == paged::Cache::kFloat8 ? run<Number, Float8>(p, job) : run<Number, Number>(p, job);
}

}  // namespace

Status run_cuda(const Params& p) {
  const bool scaled = p.cache == paged::Cache::kFloat8;
  Job job = {};
  job.qkv = p.qkv, job.bias = p.bias;
  job.positions = p.positions, job.slots = p.slots;
  job.q = p.q, job.k = p.k, job.v = p.v;
  job.k_scale = scaled ? p.k_scale : nullptr, job.v_scale = scaled ? p.v_scale : nullptr;
  job.heads = p.heads, job.kv_heads = p.kv_heads, job.places = p.pages * p.page_size;
  job.page_shift = std::countr_zero(static_cast<uint64_t>(p.page_size));
  job.fault = p.fault;
  rates_of(p.dim, p.theta, job.rates);
  return p.type == Type::kFloat16 ? run<Float16>(p, job) : run<BFloat16>(p, job);
}

Status which_cuda(std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  *name = "cuda/simt";
  return {};
}

}  // namespace earnest::attention::rotary_write
