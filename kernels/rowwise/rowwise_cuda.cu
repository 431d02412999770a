// SPDX-License-Identifier: Apache-2.0
// The CUDA back end: a block takes a row of a norm or a token to turn, a thread of a gate a piece. What is
// read twice is in the nearest cache then.
#include <cmath>

#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/common/row_pieces.h"
#include "kernels/rowwise/rowwise_cuda.h"

namespace earnest::rowwise {
namespace {

using namespace simt;

template <typename Stored, bool kWhole>
__global__ void __launch_bounds__(kMostThreads) norm_rows(const RmsNorm<Stored> job) {
  constexpr int kCount = kPiece<Stored>;
  EARNEST_SHARED(float, partial, kMostWarps);
  const int64_t row = blockIdx.x, width = job.width, step = int64_t{blockDim.x} * kCount;
  const int64_t first = int64_t{threadIdx.x} * kCount;
  const Stored* x = job.x + row * width;
  float squares = 0;
  for (int64_t j = first; j < width; j += step) {
    float values[kCount];
    load<kWhole>(x + j, width - j, values);
    if (job.added != nullptr) {
      float more[kCount];
      load<kWhole>(job.added + row * width + j, width - j, more);
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = rounded(values[i] + more[i], x);
      store<kWhole>(values, width - j, job.sum + row * width + j);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += values[i] * values[i];
  }
  const float sum = sum_of_block(squares, partial);
  const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(width) + static_cast<float>(job.eps));
  if (threadIdx.x == 0) job.inverse[row] = inverse;
  if (job.added != nullptr) x = job.sum + row * width;  // what this same thread has written
  for (int64_t j = first; j < width; j += step) {
    float values[kCount], weight[kCount];
    load<kWhole>(x + j, width - j, values);
    load<kWhole>(job.weight + j, width - j, weight);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = values[i] * inverse * weight[i];
    store<kWhole>(values, width - j, job.y + row * width + j);
  }
}

constexpr int kTurnThreads = 128;

// kWhole: half a head is whole pieces.
template <typename Fused, typename Apart, bool kWhole>
__global__ void __launch_bounds__(kTurnThreads) turn_rows(const Rotary<Fused, Apart> job) {
  constexpr int kCount = kPiece<Fused>;
  const int64_t row = blockIdx.x, slot = job.slots != nullptr ? job.slots[row] : row;
  const bool kept = job.slots == nullptr || (slot >= 0 && slot < job.places);
  if (!kept && slot != -1 && job.fault != nullptr && threadIdx.x == 0)
    record_fault(job.fault, {FaultOp::kRotary, row, 0});
  const auto half = static_cast<unsigned>(job.dim / 2), pieces = (half + kCount - 1) / kCount;
  const auto heads = static_cast<unsigned>(job.heads), kv_heads = static_cast<unsigned>(job.kv_heads);
  const Fused* qkv = job.qkv + row * (job.heads + 2 * job.kv_heads) * job.dim;
  const unsigned count = (heads + (kept ? 2 * kv_heads : 0)) * pieces;
  for (unsigned i = threadIdx.x; i < count; i += kTurnThreads) {
    const unsigned head = i / pieces, j = i % pieces * kCount;
    const bool is_query = head < heads, is_value = head >= heads + kv_heads;
    const int64_t left = half - j;
    float first[kCount], second[kCount];
    load<kWhole>(qkv + head * job.dim + j, left, first);
    load<kWhole>(qkv + head * job.dim + half + j, left, second);
    if (!is_value) {
      float cosine[kCount], sine[kCount];
      load<kWhole>(job.cosine + row * half + j, left, cosine);
      load<kWhole>(job.sine + row * half + j, left, sine);
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        const float a = first[n], b = second[n];
        first[n] = a * cosine[n] - b * sine[n];
        second[n] = b * cosine[n] + a * sine[n];
      }
    }
    Apart* to =
        is_query ? job.q + (row * job.heads + head) * job.dim
                 : (is_value ? job.v : job.k) + (slot * job.kv_heads + (head - heads) % kv_heads) * job.dim;
    store<kWhole>(first, left, to + j);
    store<kWhole>(second, left, to + half + j);
  }
}

// `across` blocks for each row.
template <typename Stored, bool kWhole>
__global__ void __launch_bounds__(kMostThreads) gate_rows(const SwiGlu<Stored> job, const unsigned across) {
  constexpr int kCount = kPiece<Stored>;
  const int64_t row = blockIdx.x / across, width = job.width;
  const int64_t j = (int64_t{blockIdx.x % across} * blockDim.x + threadIdx.x) * kCount;
  if (j >= width) return;
  const Stored* gates = job.gate_up + 2 * row * width;
  float gate[kCount], up[kCount];
  load<kWhole>(gates + j, width - j, gate);
  load<kWhole>(gates + width + j, width - j, up);
#pragma unroll
  for (int i = 0; i < kCount; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  store<kWhole>(gate, width - j, job.out + row * width + j);
}

}  // namespace

Status which_cuda(std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties("rowwise", &device); !status.ok()) return status;
  *name = "cuda";
  return {};
}

template <typename Stored>
Status rms_norm_cuda(const RmsNorm<Stored>& job) {
  if (job.rows == 0) return {};
  dim3 grid;
  if (Status status = row_grid("rms_norm", job.rows, 1, &grid); !status.ok()) return status;
  const bool whole =
      in_whole_pieces(job.width, kPiece<Stored>, {job.x, job.weight, job.y, job.added, job.sum});
  return launch({"rms_norm", "norm_rows"}, whole ? norm_rows<Stored, true> : norm_rows<Stored, false>, grid,
                threads_for(pieces_of(job.width, kPiece<Stored>)), 0, job.stream, job);
}

template <typename Fused, typename Apart>
Status rotary_cuda(const Rotary<Fused, Apart>& job) {
  if (job.rows == 0) return {};
  const int64_t width = (job.heads + 2 * job.kv_heads) * job.dim;
  if (width > INT32_MAX)
    return unsupported("rotary", "qkv", "rows of fewer than 2^31 numbers on cuda", std::to_string(width));
  dim3 grid;
  if (Status status = row_grid("rotary", job.rows, 1, &grid); !status.ok()) return status;
  const bool whole =
      in_whole_pieces(job.dim / 2, kPiece<Fused>, {job.qkv, job.cosine, job.sine, job.q, job.k, job.v});
  return launch({"rotary", "turn_rows"},
                whole ? turn_rows<Fused, Apart, true> : turn_rows<Fused, Apart, false>, grid,
                dim3(kTurnThreads), 0, job.stream, job);
}

template <typename Stored>
Status swiglu_cuda(const SwiGlu<Stored>& job) {
  if (job.rows == 0) return {};
  RowLaunch of;
  if (Status status = piece_launch("swiglu", job.rows, job.width, kPiece<Stored>, &of); !status.ok())
    return status;
  const bool whole = in_whole_pieces(job.width, kPiece<Stored>, {job.gate_up, job.out});
  return launch({"swiglu", "gate_rows"}, whole ? gate_rows<Stored, true> : gate_rows<Stored, false>, of.grid,
                of.threads, 0, job.stream, job, of.across);
}

template Status rms_norm_cuda(const RmsNorm<float>&);
template Status rms_norm_cuda(const RmsNorm<BFloat16>&);
template Status rotary_cuda(const Rotary<float, float>&);
template Status rotary_cuda(const Rotary<BFloat16, BFloat16>&);
template Status rotary_cuda(const Rotary<BFloat16, float>&);
template Status swiglu_cuda(const SwiGlu<float>&);
template Status swiglu_cuda(const SwiGlu<BFloat16>&);

}  // namespace earnest::rowwise
