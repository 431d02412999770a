// SPDX-License-Identifier: Apache-2.0
// What pieces of sequences of one query have left behind becomes their rows, whichever path has left it.
#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_pieces_work.h"
#include "kernels/common/simt.h"

namespace earnest::attention::gpu {
namespace {

constexpr int kJoining = 128, kJoiningWarps = kJoining / simt::kWarpSize;

// A warp joins the parts of a row, piece after piece; a lane has pairs of its numbers.
template <typename T, int kDim>
__global__ void __launch_bounds__(kJoining)
    join_pieces(const Params p, const Output output, const Plan plan, const Parts parts) {
  constexpr int kPairs = kDim / 64;
  const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
  const int warp = static_cast<int>(threadIdx.x) / simt::kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kJoiningWarps + warp, n = row / p.heads, head = row % p.heads;
  if (n >= p.sequences) return;
  const Sequence s = sequence_of(p, n);
  const int64_t pieces = pieces_of(keys_seen(s, 0, p.causal));
  if (!is_split(s, plan) || pieces == 1) return;
  float largest = -INFINITY, sum = 0;
  float2 o[kPairs] = {};
#pragma unroll 4
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t part = part_of(s.key_begin, n, piece) * p.heads + head;
    const float2 of_piece = *reinterpret_cast<const float2*>(parts.sums + 2 * part);
    const Joint joint(scale, largest, of_piece.x);
    largest = joint.largest;
    sum = joint(sum, of_piece.y);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 pair =
          *reinterpret_cast<const float2*>(parts.outputs + part * kDim + 64 * i + 2 * sm80::lane());
      o[i] = make_float2(joint(o[i].x, pair.x), joint(o[i].y, pair.y));
    }
  }
  const int64_t line = s.query_begin * p.heads + head;
  const float inverse = 1 / sum;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    *reinterpret_cast<uint32_t*>(static_cast<T*>(output.out) + line * kDim + 64 * i + 2 * sm80::lane()) =
        sm80::pack(fmaf(o[i].x, inverse, 0.0f), fmaf(o[i].y, inverse, 0.0f), T{});
  }
  if (sm80::lane() == 0 && output.lse != nullptr)
    output.lse[line] = sum > 0 ? fma(double{largest}, p.scale, log(double{sum})) : NAN;
}

template <typename T>
Status launch(const Params& p, const Output& output, const Plan& plan, const Parts& parts) {
  const auto rows = static_cast<unsigned>(blocks_of(p.sequences * p.heads, kJoiningWarps));
  return simt::launch({kOp, "join_pieces"}, p.dim == 64 ? join_pieces<T, 64> : join_pieces<T, 128>,
                      dim3(rows), dim3(kJoining), 0, p.stream, p, output, plan, parts);
}

}  // namespace

Status join_parts(const Params& p, const Output& output, const Plan& plan, const Parts& parts) {
  if (most_pieces(p) == 1) return {};
  return p.type == Type::kFloat16 ? launch<Float16>(p, output, plan, parts)
                                  : launch<BFloat16>(p, output, plan, parts);
}

}  // namespace earnest::attention::gpu
