// SPDX-License-Identifier: Apache-2.0
// Scaled dot-product attention over packed variable-length sequences, forward and backward.
//
//   s_ij = scale * <q_i, k_j>    p_ij = exp(s_ij - lse_i)    lse_i = log sum_j exp(s_ij)
//   o_i = sum_j p_ij v_j
//
// Sequence n owns query rows [cu_seqlens_q[n], cu_seqlens_q[n + 1]) and the first keys of
// [cu_seqlens_k[n], cu_seqlens_k[n + 1]): all of them, or seqused_k[n] (a KV cache that is partly filled;
// what lies beyond is never read). Query head h attends with key head h / (heads / kv_heads). Causal aligns
// the last query with the last key: query i of m sees keys j <= i + (n - m) of n. A row that sees no key
// gives o = 0, lse = -inf and gradients 0.
//
// A row's bits depend on its query, its keys and the CPU tier alone: not on the batch around it, nor on the
// thread count, nor on how many queries are computed with it (prefill and cached decoding agree). Gradients
// likewise depend on their own sequence alone, and are summed in a fixed order. Exception to "sees" on the
// CPU: a NaN or Inf in V reaches the few rows before it in its own causal sequence that are computed in one
// block with it (0 * NaN). On CUDA, where bits depend on the path instead of the tier, there is none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/common/cuda_path.h"
#include "kernels/common/device.h"
#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"

namespace earnest::attention {

// Of bfloat16, sums and softmax are float32. On the tier avx512_bf16 products multiply bfloat16:
// probabilities (and, backward, the gradients of scores) are rounded to it; on the others they are not.
// CUDA runs bfloat16 and float16 (float16 on CUDA alone), and rounds likewise.
enum class Type { kFloat32, kFloat64, kBFloat16, kFloat16 };

// CUDA's ways to a result. kBest: what EARNEST_CUDA_TIER forces, or else the choice of cuda_path.h, by the
// device alone, so that no bit of a row depends on what else is in the call.
using earnest::CudaPath;

// What path sm90a does beside a softmax, forward; kBest is the one predicted to be fastest
// (attention_plan.h).
//   kSeries  nothing but what the other warpgroup happens to do
//   kTurns   the other warpgroup's products: the two take turns at asking for theirs
//   kAhead   the warpgroup's own product with the values before
//   kBoth    both of these
//   kWide    both, with 128 keys at a time instead of 64: bits that differ from those of all others
enum class Schedule { kBest, kSeries, kTurns, kAhead, kBoth, kWide };

constexpr int64_t kMaxDim = 256;

struct Params {
  Device device = Device::kCpu;
  Type type = Type::kFloat32;
  int64_t sequences = 0, tokens_q = 0, tokens_k = 0;
  int64_t heads = 0, kv_heads = 0;  // heads is a multiple of kv_heads
  int64_t dim = 0;                  // a multiple of 8, at most kMaxDim; on CUDA 64 or 128
  const int32_t* cu_seqlens_q =
      nullptr;  // [sequences + 1], from 0 to tokens_q; null: sequences of equal length
  const int32_t* cu_seqlens_k =
      nullptr;                         // [sequences + 1], from 0 to tokens_k; null: sequences of equal length
  const int32_t* seqused_k = nullptr;  // [sequences]; null: every key is used
  bool causal = false;
  double scale = 1.0;       // positive and finite
  const void* q = nullptr;  // [tokens_q, heads, dim], contiguous like all below
  const void* k = nullptr;  // [tokens_k, kv_heads, dim]
  const void* v = nullptr;  // [tokens_k, kv_heads, dim]
  // With Device::kCuda only, where arrays of numbers begin on 16 bytes. A call puts work on the stream, waits
  // for nothing and allocates nothing. Nobody looks at the bounds before: wrong ones are recorded if `fault`
  // is there, nothing outside of the arrays is touched, and what out and lse then hold is not said.
  void* stream = nullptr;      // a cudaStream_t
  FaultWord* fault = nullptr;  // on the device (device_fault.h); null: not recorded
  // [workspace_size(params)], or [backward_workspace_size(params)]; begins on 16 bytes, of no particular
  // content
  void* workspace = nullptr;
  CudaPath path = CudaPath::kBest;
  Schedule schedule = Schedule::kBest;  // of path sm90a; where keys go in pieces kWide alone
  int tile_rows = 0;  // rows that a block takes at a time, 64 or 128; 0: the rule's. No bit depends on it
  // On CUDA. 0: one softmax over all keys of a row. Else no sequence uses more keys than this, and every 512
  // of them (attention_pieces.h) are a softmax of their own, joined in ascending order, so that many blocks
  // can share a sequence of one query. Bits are others where a row sees more than 512 keys; they do not
  // depend on this number, nor on which queries are computed together. On the CPU keys always go in pieces.
  int64_t most_keys = 0;
};

struct Output {
  void* out = nullptr;  // [tokens_q, heads, dim], of q's type
  // [tokens_q, heads]; null: not wanted. float64 for every type: the backward pass exponentiates against it,
  // where float32's rounding of it alone would cost every probability of the row up to 2e-7.
  double* lse = nullptr;
};

struct Gradients {
  const void* out = nullptr;         // of the forward pass
  const double* lse = nullptr;       // of the forward pass
  const void* grad_out = nullptr;    // [tokens_q, heads, dim]
  const double* grad_lse = nullptr;  // like lse; null: no gradient comes that way
  void* grad_q = nullptr;            // like q; grad_k and grad_v like k and v. Every element is written.
  void* grad_k = nullptr;
  void* grad_v = nullptr;
};

size_t workspace_size(const Params& params);  // in bytes, of forward; none on the CPU
size_t backward_workspace_size(const Params& params);

Status forward(const Params& params, const Output& output);
Status backward(const Params& params, const Gradients& gradients);

// The oracle: plain loops in float64, rounded to the type at the end.
Status reference_forward(const Params& params, const Output& output);
Status reference_backward(const Params& params, const Gradients& gradients);

// The back end that forward and backward would run, "cpu/avx512" or "cuda/sm80"; an error if there is none.
Status which(Device device, Type type, int64_t dim, std::string* name);

// What a word of faults says of these bounds, in the words of the CPU's checks; ok for kNoFault.
Status fault(const Params& params, FaultWord word);

}  // namespace earnest::attention
