// SPDX-License-Identifier: Apache-2.0
// Path sm80, forward, with keys in pieces that have a softmax each (attention_pieces_work.h): a block for
// each piece of work, which takes a tile of rows as in attention_sm80.cu and joins its pieces in registers.
#include "kernels/attention/attention_keys.h"
#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_pieces_work.h"
#include "kernels/attention/attention_result.h"
#include "kernels/common/record_fault.h"

namespace earnest::attention::gpu::sm80 {
namespace {

// Joined sums of a warp's strip.
template <int kDim>
struct Joined {
  Strips<1, kDim / 8> o = {};
  RowState states[1][2];  // sums of whole rows, in each lane

  __device__ void add(float scale, const RowState (&of_piece)[1][2], const Strips<1, kDim / 8>& piece) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      RowState& state = states[0][half];
      const Joint joint(scale, state.largest, of_piece[0][half].largest);
      state = {joint.largest, joint(state.sum, sum_in_quad(of_piece[0][half].sum))};
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) o[0][j][i] = joint(o[0][j][i], piece[0][j][i]);
      }
    }
  }
};

template <typename T, int kDim>
__device__ inline void attend(const Params& p, const Output& output, float scale, const Work& work,
                              const Memory<kDim, 1>& memory, const Parts& parts) {
  Joined<kDim> joined;
  if (work.tiles > 0) load_queries<T>(p, work.rows, memory);
  for (int piece = work.first_piece; piece < work.end_piece; ++piece) {
    Strips<1, kDim / 8> o = {};
    RowState states[1][2];
    const int first = piece * kPieceTiles, end = first + kPieceTiles;
    attend_tiles<T, kDim, 1, true>(p, scale, work.rows, first, end < work.tiles ? end : work.tiles,
                                   work.whole_tiles, memory, states, o);
    joined.add(scale, states, o);
  }
  if (work.part >= 0) {
    leave_behind(work, warp() * kStripRows, joined.o[0], joined.states[0], parts);
    return;
  }
  if (strip_column() != 0)  // one lane of four has the sum of all
    joined.states[0][0].sum = joined.states[0][1].sum = 0;
  write_rows<T, Memory<kDim, 1>::kRows, kDim, 1>(p, output, work.rows, warp() * kStripRows, joined.states,
                                                 joined.o, memory.q);
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    forward_pieces(const Params p, const Output output, const Plan plan, const Tile* const order,
                   const Parts parts) {
  const Memory<kDim, 1> memory;
  EARNEST_SHARED(Work, work, 1);  // registers are for sums
  EARNEST_SHARED(bool, found, 1);
  const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
  const int64_t index = blockIdx.x;  // there are as many blocks as sequences at least
  if (threadIdx.x == 0) {
    const Bounds wrong = index < p.sequences ? wrong_bounds(p, index) : Bounds::kRight;
    if (wrong != Bounds::kRight && p.fault != nullptr)
      record_fault(p.fault, {FaultOp::kAttention, index, static_cast<int>(wrong)});
    found[0] = find_work(p, plan, order, blockIdx.x, &work[0]);
  }
  __syncthreads();
  if (found[0]) attend<T, kDim>(p, output, scale, work[0], memory, parts);
}

template <typename T, int kDim>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order,
              const Parts& parts) {
  const auto blocks = static_cast<unsigned>(work_of(p, plan));
  return simt::launch({kOp, "forward_pieces"}, forward_pieces<T, kDim>, dim3(blocks), dim3(kThreads),
                      Memory<kDim, 1>::kBytes, p.stream, p, output, plan, order, parts);
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
