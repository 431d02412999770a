// SPDX-License-Identifier: Apache-2.0
// Path sm80, forward: a block takes a tile of rows through the keys that they see (attention_keys.h).
#include "kernels/attention/attention_keys.h"
#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_result.h"
#include "kernels/common/record_fault.h"

namespace earnest::attention::gpu::sm80 {
namespace {

template <typename T, int kDim, int S>
__device__ inline void attend(const Params& p, const Output& output, float scale, const Rows& rows,
                              const Memory<kDim, S>& memory) {
  const KeyTiles tiles = rows.tiles();
  Strips<S, kDim / 8> o = {};
  RowState states[S][2];
  if (tiles.all > 0) load_queries<T>(p, rows, memory);
  attend_tiles<T, kDim, S, false>(p, scale, rows, 0, static_cast<int>(tiles.all),
                                  static_cast<int>(tiles.whole), memory, states, o);
  write_rows<T, Memory<kDim, S>::kRows, kDim, S>(p, output, rows, warp() * S * kStripRows, states, o,
                                                 memory.q);
}

template <typename T, int kDim, int S>
__global__ void __launch_bounds__(kThreads, 2)
    forward_tiles(const Params p, const Output output, const Plan plan, const Tile* const order) {
  const Memory<kDim, S> memory;
  EARNEST_SHARED(Rows, rows, 1);  // in registers, of which sums leave few, they would be spilled
  const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
  const int64_t index = blockIdx.x;  // there are as many blocks as sequences at least
  if (threadIdx.x == 0 && index < p.sequences && p.fault != nullptr) {
    const Bounds wrong = wrong_bounds(p, index);
    if (wrong != Bounds::kRight) record_fault(p.fault, {FaultOp::kAttention, index, static_cast<int>(wrong)});
  }
  const int64_t slot = index / p.kv_heads;
  const Tile tile = order != nullptr ? order[slot] : tile_of(p, plan, slot);
  if (tile.sequence < 0) return;
  if (threadIdx.x == 0) rows[0] = Rows(p, plan, tile, index % p.kv_heads);
  __syncthreads();
  attend<T, kDim, S>(p, output, scale, rows[0], memory);
}

template <typename T, int kDim, int S>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  const auto blocks = static_cast<unsigned>(plan.slots * p.kv_heads);
  return simt::launch({kOp, "forward_tiles"}, forward_tiles<T, kDim, S>, dim3(blocks), dim3(kThreads),
                      Memory<kDim, S>::kBytes, p.stream, p, output, plan, order);
}

template <typename T, int kDim>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  if (plan.tile_rows == kFewTileRows) return launch<T, kDim, 1>(p, output, plan, order);
  return launch<T, kDim, 2>(p, output, plan, order);
}

template <typename T>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  if (p.dim == 64) return launch<T, 64>(p, output, plan, order);
  return launch<T, 128>(p, output, plan, order);
}

}  // namespace

Status forward(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  if (p.type == Type::kFloat16) return launch<Float16>(p, output, plan, order);
  return launch<BFloat16>(p, output, plan, order);
}

}  // namespace earnest::attention::gpu::sm80
