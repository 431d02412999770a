// SPDX-License-Identifier: Apache-2.0
// Path sm80, forward, with keys in pieces that have a softmax each (attention_pieces.h). The first blocks
// take a tile of rows, as in attention_sm80.cu: of a sequence of one query its first piece, else all pieces,
// one after the other. The blocks behind them take the further pieces of sequences of one query, and
// join_parts joins what those leave behind.
#include <algorithm>

#include "kernels/attention/attention_keys.h"
#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_pieces.h"
#include "kernels/attention/attention_result.h"
#include "kernels/common/record_fault.h"

namespace earnest::attention::gpu::sm80 {
namespace {

// How sums of earlier pieces and of one more become one: each is scaled to the larger of both scores. The
// same steps in a block and in join_parts; from nothing the result is the piece itself.
struct Joint {
  float largest, keep, take;
  __device__ Joint(float scale, float before, float of_piece) : largest(fmaxf(before, of_piece)) {
    const float base = largest == -INFINITY ? 0 : largest;
    keep = exp2_of((before - base) * scale);
    take = exp2_of((of_piece - base) * scale);
  }
  __device__ float operator()(float before, float of_piece) const {
    return fmaf(before, keep, of_piece * take);
  }
};

// What a block is at, in shared memory: registers are for sums.
struct Work {
  Rows rows;
  int first_piece, end_piece;
  int64_t part;  // of the first; -1: nothing is left behind
};

// Joined sums of a warp's strip.
template <int kDim>
struct Joined {
  Strips<1, kDim / 8> o = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  __device__ void add(float scale, const RowState (&states)[1][2], const Strips<1, kDim / 8>& piece) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Joint joint(scale, largest[half], states[0][half].largest);
      largest[half] = joint.largest;
      sum[half] = joint(sum[half], sum_in_quad(states[0][half].sum));
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) o[0][j][i] = joint(o[0][j][i], piece[0][j][i]);
      }
    }
  }
};

// Sums of the rows of one query: one row for each head of the group.
template <int kDim>
__device__ inline void leave_behind(const Work& work, const Joined<kDim>& joined, const Parts& parts) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int member = warp() * kStripRows + strip_row(half);
    if (member >= work.rows.count) continue;
    const int64_t row = work.part * work.rows.heads + work.rows.kv_head * work.rows.group + member;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      *reinterpret_cast<float2*>(parts.outputs + row * kDim + 8 * j + strip_column()) =
          make_float2(joined.o[0][j][2 * half], joined.o[0][j][2 * half + 1]);
    }
    if (strip_column() == 0)
      *reinterpret_cast<float2*>(parts.sums + 2 * row) = make_float2(joined.largest[half], joined.sum[half]);
  }
}

template <typename T, int kDim>
__device__ inline void attend(const Params& p, const Output& output, float scale, const Work& work,
                              const Memory<kDim, 1>& memory, const Parts& parts) {
  const KeyTiles tiles = work.rows.tiles();
  Joined<kDim> joined;
  if (tiles.all > 0) load_queries<T>(p, work.rows, memory);
  for (int piece = work.first_piece; piece < work.end_piece; ++piece) {
    Strips<1, kDim / 8> o = {};
    RowState states[1][2];
    const int64_t end = (int64_t{piece} + 1) * kPieceTiles;
    attend_tiles<T, kDim, 1, true>(p, scale, work.rows, piece * kPieceTiles,
                                   static_cast<int>(end < tiles.all ? end : tiles.all),
                                   static_cast<int>(tiles.whole), memory, states, o);
    joined.add(scale, states, o);
  }
  if (work.part >= 0) {
    leave_behind<kDim>(work, joined, parts);
    return;
  }
  RowState states[1][2];
#pragma unroll
  for (int half = 0; half < 2; ++half)  // one lane of four has the sum of all
    states[0][half] = {joined.largest[half], strip_column() == 0 ? joined.sum[half] : 0};
  write_rows<T, Memory<kDim, 1>::kRows, kDim, 1>(p, output, work.rows, warp() * kStripRows, states, joined.o,
                                                 memory.q);
}

// False where the block has nothing to do.
__device__ inline bool find_work(const Params& p, const Plan& plan, const Tile* order, Work* work) {
  const int64_t index = blockIdx.x, first_blocks = plan.slots * p.kv_heads, further = index - first_blocks;
  const bool is_first = further < 0;
  Tile tile = {0, 0};
  if (is_first) {
    tile = order != nullptr ? order[index / p.kv_heads] : tile_of(p, plan, index / p.kv_heads);
    if (tile.sequence < 0) return false;
  } else {
    tile.sequence = further / p.kv_heads % p.sequences;
  }
  const Sequence s = sequence_of(p, tile.sequence);
  const bool split = is_split(s, plan);
  if (!is_first && !split) return false;
  const int64_t piece = is_first ? 0 : 1 + further / p.kv_heads / p.sequences;
  work->rows = Rows(p, plan, tile, index % p.kv_heads);
  const int64_t pieces = pieces_of(work->rows.tiles().all * kKeys);
  if (piece >= pieces) return false;
  work->first_piece = static_cast<int>(piece);
  work->end_piece = static_cast<int>(split ? piece + 1 : pieces);
  work->part = split && pieces > 1 ? part_of(s.key_begin, tile.sequence, piece) : -1;
  return true;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    forward_pieces(const Params p, const Output output, const Plan plan, const Tile* const order,
                   const Parts parts) {
  const Memory<kDim, 1> memory;
  EARNEST_SHARED(Work, work, 1);
  EARNEST_SHARED(bool, found, 1);
  const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
  const int64_t index = blockIdx.x;  // there are as many blocks as sequences at least
  if (threadIdx.x == 0) {
    const Bounds wrong = index < p.sequences ? wrong_bounds(p, index) : Bounds::kRight;
    if (wrong != Bounds::kRight && p.fault != nullptr)
      record_fault(p.fault, {FaultOp::kAttention, index, static_cast<int>(wrong)});
    found[0] = find_work(p, plan, order, &work[0]);
  }
  __syncthreads();
  if (found[0]) attend<T, kDim>(p, output, scale, work[0], memory, parts);
}

// A warp joins the parts of a row, piece after piece; a lane has pairs of its numbers.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    join_parts(const Params p, const Output output, const Plan plan, const Parts parts) {
  constexpr int kPairs = kDim / 64;
  const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp(), n = row / p.heads, head = row % p.heads;
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
      const float2 pair = *reinterpret_cast<const float2*>(parts.outputs + part * kDim + 64 * i + 2 * lane());
      o[i] = make_float2(joint(o[i].x, pair.x), joint(o[i].y, pair.y));
    }
  }
  const int64_t line = s.query_begin * p.heads + head;
  const float inverse = 1 / sum;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    *reinterpret_cast<uint32_t*>(static_cast<T*>(output.out) + line * kDim + 64 * i + 2 * lane()) =
        pack(fmaf(o[i].x, inverse, 0.0f), fmaf(o[i].y, inverse, 0.0f), T{});
  }
  if (lane() == 0 && output.lse != nullptr)
    output.lse[line] = sum > 0 ? fma(double{largest}, p.scale, log(double{sum})) : NAN;
}

template <typename T, int kDim>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order,
              const Parts& parts) {
  const int64_t further = p.sequences * (most_pieces(p) - 1);
  const auto blocks = static_cast<unsigned>((plan.slots + further) * p.kv_heads);
  if (Status status =
          simt::launch({kOp, "forward_pieces"}, forward_pieces<T, kDim>, dim3(blocks), dim3(kThreads),
                       Memory<kDim, 1>::kBytes, p.stream, p, output, plan, order, parts);
      !status.ok() || further == 0) {
    return status;
  }
  const auto rows = static_cast<unsigned>(blocks_of(p.sequences * p.heads, kWarps));
  return simt::launch({kOp, "join_parts"}, join_parts<T, kDim>, dim3(rows), dim3(kThreads), 0, p.stream, p,
                      output, plan, parts);
}

template <typename T>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order,
              const Parts& parts) {
  return p.dim == 64 ? launch<T, 64>(p, output, plan, order, parts)
                     : launch<T, 128>(p, output, plan, order, parts);
}

}  // namespace

Status forward_in_pieces(const Params& p, const Output& output, const Plan& plan, const Tile* order,
                         const Parts& parts) {
  return p.type == Type::kFloat16 ? launch<Float16>(p, output, plan, order, parts)
                                  : launch<BFloat16>(p, output, plan, order, parts);
}

}  // namespace earnest::attention::gpu::sm80
