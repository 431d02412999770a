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

constexpr int kTilesOfPiece = kPieceKeys / Wide::keys, kHalves = Wide::keys / kKeys;  // of a tile
static_assert(kPieceKeys % Wide::keys == 0 && Wide::keys % kKeys == 0);

// Of the tiles of keys of a piece.
__device__ inline int end_of(const Work& work, int piece) {
  const int end = (piece + 1) * kTilesOfPiece;
  return end < work.tiles ? end : work.tiles;
}

template <typename T, int kDim>
struct PieceHands : Hands<T, kDim, Wide> {
  using Base = Hands<T, kDim, Wide>;
  using Base::o, Base::scale, Base::states;

  const Work& work;
  const PiecesMemory<kDim, Wide::keys>& memory;

  // The thread's own of what pieces before have left: sums, and largest score and sum of weights of its two
  // rows, in place of the warp's queries, which are in registers.
  __device__ Bytes sums() const { return memory.aside + multiplying_thread() * kQuad; }
  __device__ Bytes rows_before() const {
    const int thread = multiplying_thread();
    return memory.q + Base::warp_row(thread) * sm80::kLineBytes + thread % simt::kWarpSize * kQuad;
  }

  __device__ PieceHands(const Params& params, const Work& of_tile,
                        const PiecesMemory<kDim, Wide::keys>& shared, float factor,
                        const typename Base::Position& position)
      : Base(params, of_tile.rows, shared, factor, position), work(of_tile), memory(shared) {}

  static constexpr int kQuad = sizeof(float4);
  static __device__ float4& quad_at(Bytes place) { return *reinterpret_cast<float4*>(&place[0]); }

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
    const float4 rows = quad_at(rows_before());
    const Joint low(scale, rows.x, states[0][0].largest), high(scale, rows.z, states[0][1].largest);
    states[0][0] = {low.largest, low(rows.y, sm80::sum_in_quad(states[0][0].sum))};
    states[0][1] = {high.largest, high(rows.w, sm80::sum_in_quad(states[0][1].sum))};
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      float4& place = quad_at(sums() + j * kMultiplying * kQuad);
      const float4 before = is_first ? make_float4(0, 0, 0, 0) : place;
      float (&piece)[4] = o[0][j];
      piece[0] = low(before.x, piece[0]), piece[1] = low(before.y, piece[1]);
      piece[2] = high(before.z, piece[2]), piece[3] = high(before.w, piece[3]);
      if (!is_last) place = make_float4(piece[0], piece[1], piece[2], piece[3]);
    }
    quad_at(rows_before()) =
        make_float4(states[0][0].largest, states[0][0].sum, states[0][1].largest, states[0][1].sum);
  }

  __device__ void attend(const Output& output, const Parts& parts) {
    this->bring_queries();
    __syncwarp();  // queries are in registers, and something else in their place
    quad_at(rows_before()) = make_float4(-INFINITY, 0, -INFINITY, 0);
    int tile = work.first_piece * kTilesOfPiece;  // and no number of the piece: registers are for sums
    bool is_last = false;
#pragma unroll 1
    while (!is_last) {
      begin_piece();
      const int end = end_of(work, tile / kTilesOfPiece);
      this->attend_tiles(tile, end, work.whole_tiles);
      tile = end;
      is_last = tile >= work.tiles || tile >= work.end_piece * kTilesOfPiece;
      join(tile <= (work.first_piece + 1) * kTilesOfPiece, is_last);
    }
    if (work.part >= 0) {
      leave_behind(work, this->warp_row(thread_afresh()), o[0], states[0], parts);
    } else {
      // One lane of four has all of the sum; and what has been in place of queries has been read.
      if (sm80::strip_column() != 0) states[0][0].sum = states[0][1].sum = 0;
      __syncwarp();
      this->write(output);
    }
  }
};

// What a warpgroup is at, in shared memory: registers are for sums.
struct Found {
  unsigned next;                                      // index of work, of the block's
  Round<ForwardMemory<64, Wide::keys>::kStages> now;  // where it stands in the ring
  bool any;
  Work work;  // its tiles are of Wide::keys keys
};
// By one thread of the warpgroup. False where nothing is left.
__device__ inline bool find(const Params& p, const Plan& plan, const Tile* order, unsigned all,
                            Found* found) {
  Plan known = plan;
  known.tile_rows = kTileRows;  // as it is, so that nobody divides by it
  found->any = false;
  while (!found->any && found->next < all) {
    const unsigned index = found->next;
    found->next = index + sm80::afresh(gridDim.x);
    found->any = find_work(p, known, order, index, &found->work) && found->work.rows.count > 0;
  }
  if (!found->any) return false;
  found->work.tiles = (found->work.tiles + kHalves - 1) / kHalves;
  found->work.whole_tiles /= kHalves;
  return true;
}

// Who finds work wants more registers than who only brings keys, where sums leave them.
template <int kDim>
constexpr int kLoadingOf = kDim == 64 ? kLoadingRegisters + 16 : kLoadingRegisters;
template <int kDim>
constexpr int kMultiplyingOf = kDim == 64 ? kMultiplyingRegisters - 8 : kMultiplyingRegisters;

template <typename T, int kDim>
__global__ void __launch_bounds__(kForwardThreads, 1)
    forward_pieces(const __grid_constant__ hopper::TensorMap keys,
                   const __grid_constant__ hopper::TensorMap values, const __grid_constant__ Params p,
                   const __grid_constant__ Output output, const __grid_constant__ Plan plan,
                   const Tile* const order, const __grid_constant__ Parts parts, const unsigned all) {
  const PiecesMemory<kDim, Wide::keys> memory;
  using Memory = ForwardMemory<kDim, Wide::keys>;
  EARNEST_SHARED(Found, of_warpgroup, 3);
  Found& found = of_warpgroup[threadIdx.x / kWarpgroup];
  begin_block(p, memory);
  if (threadIdx.x < kWarpgroup) {
    hopper::leave_registers<kLoadingOf<kDim>>();
    if (threadIdx.x == 0) {
      found.next = blockIdx.x, found.now = {};
      while (find(p, plan, order, all, &found)) {
        Loader<Memory> loader(keys, values, memory, found.now);
        const Work& work = found.work;
        loader.bring(work.rows, work.first_piece * kTilesOfPiece, end_of(work, work.end_piece - 1));
        found.now = loader.now;
      }
    }
  } else {
    hopper::take_registers<kMultiplyingOf<kDim>>();
    const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
    const bool is_first = multiplying_thread() % kWarpgroup == 0;         // of the warpgroup
    if (multiplying_warpgroup() == 1) give_turn<Wide>();
    if (is_first) found.next = blockIdx.x, found.now = {};
    for (;;) {
      if (is_first) find(p, plan, order, all, &found);
      meet_warpgroup();
      if (!found.any) break;
      PieceHands<T, kDim> hands(p, found.work, memory, scale, found.now);
      hands.attend(output, parts);
      if (is_first) found.now = hands.now;
      meet_warpgroup();  // the next work and the next queries may be brought
    }
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
  const auto all = static_cast<unsigned>(work_of(p, plan));
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
