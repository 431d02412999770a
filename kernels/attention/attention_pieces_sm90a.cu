// SPDX-License-Identifier: Apache-2.0
// Path sm90a, forward, with keys in pieces that have a softmax each (attention_pieces_work.h). Blocks, tiles
// of keys and what is done with them are those of attention_sm90a.cu, by the schedule kWide. Between two
// pieces of a tile of rows no product is under way, and the sums so far wait in shared memory: registers have
// room for one set of them.
#include <algorithm>

#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_pieces_work.h"
#include "kernels/attention/attention_sm90a_block.h"
#include "kernels/attention/attention_sm90a_multiply.h"
#include "kernels/common/cuda.h"

namespace earnest::attention::gpu::sm90a {
namespace {

constexpr int kTilesOfPiece = kPieceKeys / Wide::keys;
static_assert(kPieceKeys % Wide::keys == 0);

template <typename Each>
__device__ inline void walk(const Params& p, const Plan& plan, const Tile* order, int64_t all,
                            const Each& each) {
  for (int64_t index = blockIdx.x; index < all; index += gridDim.x) {
    Work work;
    if (find_work(p, plan, order, index, &work) && work.rows.count > 0) each(work);
  }
}

__device__ inline int end_of(const KeyTiles& tiles, int piece) {
  return static_cast<int>(between(0, (int64_t{piece} + 1) * kTilesOfPiece, tiles.all));
}

template <typename T, int kDim>
struct PieceHands : Hands<T, kDim, Wide> {
  using Base = Hands<T, kDim, Wide>;
  using Base::o, Base::scale, Base::states;

  const Work& work;
  Bytes aside;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // of the pieces before, joined

  __device__ PieceHands(const Params& params, const Work& of_tile,
                        const PiecesMemory<kDim, Wide::keys>& memory, float factor,
                        const typename Base::Position& position)
      : Base(params, of_tile.rows, memory, factor, position),
        work(of_tile),
        aside(memory.aside + multiplying_thread() * static_cast<int>(sizeof(float4))) {}

  __device__ void begin_piece() {
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[0][j][i] = 0;
    }
    states[0][0] = states[0][1] = sm80::RowState();
  }

  // The sums of the piece and of those before, into the former's place, and for the next piece aside.
  __device__ void join(bool is_first, bool is_last) {
    const Joint joints[2] = {{scale, largest[0], states[0][0].largest},
                             {scale, largest[1], states[0][1].largest}};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = joints[half].largest;
      sum[half] = joints[half](sum[half], sm80::sum_in_quad(states[0][half].sum));
    }
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      auto& place = *reinterpret_cast<float4*>(&aside[j * kMultiplying * static_cast<int>(sizeof(float4))]);
      const float4 before = is_first ? make_float4(0, 0, 0, 0) : place;
      float (&piece)[4] = o[0][j];
      piece[0] = joints[0](before.x, piece[0]), piece[1] = joints[0](before.y, piece[1]);
      piece[2] = joints[1](before.z, piece[2]), piece[3] = joints[1](before.w, piece[3]);
      if (!is_last) place = make_float4(piece[0], piece[1], piece[2], piece[3]);
    }
  }

  __device__ void attend(const Output& output, const Parts& parts) {
    const KeyTiles tiles = work.rows.tiles(Wide::keys);
    this->bring_queries();
#pragma unroll 1
    for (int piece = work.first_piece; piece < work.end_piece; ++piece) {
      begin_piece();
      this->attend_tiles(piece * kTilesOfPiece, end_of(tiles, piece), tiles.whole);
      join(piece == work.first_piece, piece + 1 == work.end_piece);
    }
    if (work.part >= 0) {
      leave_behind(work, this->warp_row(), o[0], largest, sum, parts);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half)  // one lane of four has the sum of all
        states[0][half] = {largest[half], sm80::strip_column() == 0 ? sum[half] : 0};
      this->write(output);
    }
    this->leave();
  }
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kForwardThreads, 1)
    forward_pieces(const __grid_constant__ hopper::TensorMap keys,
                   const __grid_constant__ hopper::TensorMap values, const __grid_constant__ Params p,
                   const __grid_constant__ Output output, const __grid_constant__ Plan plan,
                   const Tile* const order, const __grid_constant__ Parts parts, const int64_t all) {
  const PiecesMemory<kDim, Wide::keys> memory;
  using Memory = ForwardMemory<kDim, Wide::keys>;
  begin_block(p, memory);
  if (threadIdx.x < kWarpgroup) {
    hopper::leave_registers<kLoadingRegisters>();
    if (threadIdx.x == 0) {
      Loader<Memory> loader(keys, values, memory);
      walk(p, plan, order, all, [&](const Work& work) {
        const KeyTiles tiles = work.rows.tiles(Wide::keys);
        loader.bring(work.rows, work.first_piece * kTilesOfPiece, end_of(tiles, work.end_piece - 1));
      });
    }
  } else {
    hopper::take_registers<kMultiplyingRegisters>();
    const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
    typename Memory::Position position;
    if (multiplying_warpgroup() == 1) give_turn<Wide>();
    walk(p, plan, order, all, [&](const Work& work) {
      PieceHands<T, kDim> hands(p, work, memory, scale, position);
      hands.attend(output, parts);
      position = hands.now;
    });
    if (multiplying_warpgroup() == 0) take_turn<Wide>();
  }
  __syncthreads();  // nobody leaves while TMA brings something
}

template <typename T, int kDim>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order,
              const Parts& parts) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  hopper::TensorMap keys, values;
  if (Status status = map_of(p, p.k, &keys); !status.ok()) return status;
  if (Status status = map_of(p, p.v, &values); !status.ok()) return status;
  const int64_t all = work_of(p, plan);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(all, device.multiprocessors));
  return simt::launch({kOp, "forward_pieces"}, forward_pieces<T, kDim>, dim3(blocks), dim3(kForwardThreads),
                      PiecesMemory<kDim, Wide::keys>::kBytes, p.stream, keys, values, p, output, plan, order,
                      parts, all);
}

}  // namespace

Status forward_in_pieces(const Params& p, const Output& output, const Plan& plan, const Tile* order,
                         const Parts& parts) {
  if (p.type == Type::kFloat16)
    return (p.dim == 64 ? launch<Float16, 64> : launch<Float16, 128>)(p, output, plan, order, parts);
  return (p.dim == 64 ? launch<BFloat16, 64> : launch<BFloat16, 128>)(p, output, plan, order, parts);
}

}  // namespace earnest::attention::gpu::sm90a
