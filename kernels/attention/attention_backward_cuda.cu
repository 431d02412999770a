// SPDX-License-Identifier: Apache-2.0
// The CUDA back end's backward pass: what is made of rows beforehand, and the launches.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_paths.h"
#include "kernels/common/bfloat16.h"
#include "kernels/common/cuda.h"
#include "kernels/common/float16.h"
#include "kernels/common/record_fault.h"
#include "kernels/common/simt.h"

namespace earnest::attention {
namespace {

using namespace gpu;

constexpr int kPreparing = 256;           // threads
constexpr int kPiece = 8;                 // numbers a lane takes
constexpr int64_t kMostBlocks = 1 << 16;  // a block takes further rows behind them

template <typename T>
__device__ inline float product_of_pieces(const T* a, const T* b) {
  const uint4 x = *reinterpret_cast<const uint4*>(a), y = *reinterpret_cast<const uint4*>(b);
  const uint32_t left[4] = {x.x, x.y, x.z, x.w}, right[4] = {y.x, y.y, y.z, y.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int shift = 0; shift < 32; shift += 16) {
      const T l{static_cast<uint16_t>(left[i] >> shift)}, r{static_cast<uint16_t>(right[i] >> shift)};
      sum = fmaf(widen(l), widen(r), sum);
    }
  }
  return sum;
}

// A row that sees no key has a lse of -inf: the weights that these numbers give are 0.
__device__ inline RowNumbers numbers_of(const Params& p, double lse, float delta) {
  if (lse == -INFINITY) return {0, INFINITY, delta, 0};
  const double score = lse / p.scale;
  const float base = static_cast<float>(score > FLT_MAX ? FLT_MAX : score < -FLT_MAX ? -FLT_MAX : score);
  const double left = (lse - base * p.scale) * 1.4426950408889634;  // log2(e)
  return {base, static_cast<float>(left), delta, 0};
}

// delta = <grad_out, out> - grad_lse, dim / kPiece lanes a row.
template <typename T, int kDim>
__global__ void __launch_bounds__(kPreparing)
    prepare_rows(const Params p, const Gradients g, RowNumbers* const numbers) {
  constexpr int kLanes = kDim / kPiece, kRowsAtOnce = kPreparing / kLanes;
  const int64_t all = p.tokens_q * p.heads, group = p.heads / p.kv_heads;
  for (int64_t n = blockIdx.x * int64_t{kPreparing} + threadIdx.x; p.fault != nullptr && n < p.sequences;
       n += gridDim.x * int64_t{kPreparing}) {
    const Bounds wrong = wrong_bounds(p, n);
    if (wrong != Bounds::kRight) record_fault(p.fault, {FaultOp::kAttention, n, static_cast<int>(wrong)});
  }
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int64_t first = blockIdx.x * int64_t{kRowsAtOnce}; first < all;
       first += gridDim.x * int64_t{kRowsAtOnce}) {
    const int64_t row = first + threadIdx.x / kLanes, at = row * kDim + lane * kPiece;
    float delta = 0;
    if (row < all)
      delta = product_of_pieces(static_cast<const T*>(g.grad_out) + at, static_cast<const T*>(g.out) + at);
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2)
      delta += __shfl_xor_sync(simt::kFullWarp, delta, distance);
    if (row >= all || lane != 0) continue;
    if (g.grad_lse != nullptr) delta = static_cast<float>(delta - g.grad_lse[row]);
    const int64_t token = row / p.heads, head = row % p.heads;
    const int64_t stacked = (head / group * p.tokens_q + token) * group + head % group;
    numbers[p.path == CudaPath::kSm90a ? head * p.tokens_q + token : stacked] =
        numbers_of(p, g.lse[row], delta);
  }
}

template <typename T, int kDim>
Status prepare(const Params& p, const Gradients& g, RowNumbers* numbers) {
  constexpr int64_t kRowsAtOnce = kPreparing / (kDim / kPiece);
  const int64_t blocks =
      std::max(blocks_of(p.tokens_q * p.heads, kRowsAtOnce), blocks_of(p.sequences, kPreparing));
  return simt::launch({kOp, "prepare_rows"}, prepare_rows<T, kDim>,
                      dim3(static_cast<unsigned>(std::min(blocks, kMostBlocks))), dim3(kPreparing), 0,
                      p.stream, p, g, numbers);
}

Status prepare(const Params& p, const Gradients& g, RowNumbers* numbers) {
  if (p.type == Type::kFloat16)
    return p.dim == 64 ? prepare<Float16, 64>(p, g, numbers) : prepare<Float16, 128>(p, g, numbers);
  return p.dim == 64 ? prepare<BFloat16, 64>(p, g, numbers) : prepare<BFloat16, 128>(p, g, numbers);
}

}  // namespace

size_t backward_workspace_size_cuda(const Params& p) {
  cuda::Properties device;
  return cuda::properties(kOp, &device).ok() ? backward_plan_of(p, device.shared_bytes).bytes : 0;
}

Status backward_cuda(const Params& p, const Gradients& g) {
  cuda::Properties device;
  if (Status found = cuda::properties(kOp, &device); !found.ok()) return found;
  const BackwardPlan plan = backward_plan_of(p, device.shared_bytes);
  if (plan.rows.slots == 0 && plan.keys.slots == 0) return {};
  if (Status status = check_slots("q", p, plan.rows); !status.ok()) return status;
  if (Status status = check_slots("k", p, plan.keys); !status.ok()) return status;
  auto* const workspace = static_cast<char*>(p.workspace);
  auto* const numbers = reinterpret_cast<RowNumbers*>(workspace);
  auto* const row_list = plan.rows.ordered ? reinterpret_cast<Tile*>(workspace + plan.row_list) : nullptr;
  auto* const key_list = plan.keys.ordered ? reinterpret_cast<Tile*>(workspace + plan.key_list) : nullptr;
  if (Status status = prepare(p, g, numbers); !status.ok()) return status;
  if (row_list != nullptr) {
    if (Status status = order_rows(p, plan.rows, row_list); !status.ok()) return status;
  }
  if (key_list != nullptr) {
    if (Status status = order_keys(p, plan.keys, key_list); !status.ok()) return status;
  }
  if (p.path == CudaPath::kSm90a) return sm90a::backward(p, g, plan, numbers, key_list);
  return sm80::backward(p, g, plan, numbers, row_list, key_list);
}

}  // namespace earnest::attention
