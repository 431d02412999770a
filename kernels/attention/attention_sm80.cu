// SPDX-License-Identifier: Apache-2.0
// Path sm80, forward: a block of four warps takes a tile of rows, each warp one or two strips of 16, through
// the sequence's keys (Dao 2023, "FlashAttention-2"). Keys and values have one place in shared memory each.
// The next keys are on their way while softmax and the product with values run, and values during scores and
// softmax; a second block of the multiprocessor multiplies meanwhile.
#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_result.h"
#include "kernels/attention/attention_unfinite.h"
#include "kernels/common/record_fault.h"

namespace earnest::attention::gpu::sm80 {
namespace {

template <int kDim, int S>
struct Memory {  // shared, in bytes
  static constexpr int kRows = kWarps * S * kStripRows;
  static constexpr int kQueries = kRows * kDim * 2, kTile = kKeys * kDim * 2;
  static constexpr size_t kBytes = kQueries + 2 * kTile;
  Bytes q, k, v;
  __device__ Memory()
      : q(simt::dynamic_shared<unsigned char>(0, kQueries)),
        k(simt::dynamic_shared<unsigned char>(kQueries, kTile)),
        v(simt::dynamic_shared<unsigned char>(kQueries + kTile, kTile)) {}
};

__device__ inline int warp() { return static_cast<int>(threadIdx.x) / simt::kWarpSize; }

template <typename T, int kDim, int S>
__device__ inline void attend(const Params& p, const Output& output, float scale, const Rows& rows,
                              const Memory<kDim, S>& memory) {
  constexpr int kRows = Memory<kDim, S>::kRows;
  const KeyTiles of_rows = rows.tiles();
  const int tiles = static_cast<int>(of_rows.all), whole_tiles = static_cast<int>(of_rows.whole);
  const int row = warp() * S * kStripRows;
  const auto load = [&](const void* from, Bytes to, int tile) {
    const int64_t pitch = p.kv_heads * kDim, first = int64_t{tile} * kKeys;  // from key to key
    const T* const begin =
        static_cast<const T*>(from) + (rows.sequence.key_begin + first) * pitch + rows.kv_head * kDim;
    load_rows<kKeys, kDim>(to, begin, static_cast<int>(between(0, rows.sequence.keys - first, kKeys)),
                           [&](int key) { return key * pitch; });
    simt::copy_async_commit();
  };

  Strips<S, kDim / 8> o = {};
  RowState states[S][2];
  if (tiles > 0) {
    load_rows<kRows, kDim>(memory.q, static_cast<const T*>(p.q), rows.count,
                           [&](int i) { return rows.line(i) * kDim; });
    load(p.k, memory.k, 0);
  }
  for (int tile = 0; tile < tiles; ++tile) {
    simt::copy_async_wait<0>();
    __syncthreads();  // keys are there, and everybody has read the last tile's values
    load(p.v, memory.v, tile);
    Strips<S, kKeys / 8> s = {};
    add_scores<T, kRows, kDim, S>(memory.q, memory.k, row, s);
    __syncthreads();  // everybody has read the keys
    if (tile + 1 < tiles) {
      load(p.k, memory.k, tile + 1);
    } else {
      simt::copy_async_commit();  // nothing, so that the values are the last group but one
    }
    const bool whole = tile < whole_tiles;
    const auto seen = [&](int i) { return rows.seen(row + i) - tile * kKeys; };
    if (!whole) hide_unseen<S>(s, seen);
    weigh<S>(scale, s, states, o);
    Weights<S> weights;
    round_weights<T, S>(s, weights);
    simt::copy_async_wait<1>();
    if (__syncthreads_or(!whole && rows.causal && has_unfinite<T, kDim>(memory.v, thread()))) {
      add_unfinite<T, kDim, S>(weights, memory.v, [&](int i) { return Columns{0, seen(i)}; }, o);
      __syncthreads();
      clear_unfinite<T, kDim>(memory.v, thread());
      __syncthreads();
    }
    add_values<T, kDim, S>(weights, memory.v, o);
  }
  write_rows<T, kRows, kDim, S>(p, output, rows, row, states, o, memory.q);
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
