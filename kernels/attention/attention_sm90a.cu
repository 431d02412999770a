// SPDX-License-Identifier: Apache-2.0
// Path sm90a, forward: a block of three warpgroups goes through listed tiles of 128 rows. One warpgroup (one
// thread of it) brings keys and values by TMA, two multiply by wgmma, 64 rows each, while the other one's
// softmax runs. Softmax, hidden keys and the way out are those of path sm80.
//
// Keys and values of a tile, 64 each, go round in kStages places. Of each place there are four barriers:
//   keys, values:          the loading thread arrives once, telling of the bytes that TMA counts
//   keys_read, values_read: eight warps arrive, when their products have read the place
// The n-th use of a place waits at the first two for parity n % 2, and to load for it at the others for
// parity (n + 1) % 2, which for n = 0 is over. All threads walk the same tiles, so that they count alike.
//
// TMA brings 64 keys whatever the sequence's length: those of the next sequence behind its last, 0 behind the
// last of all. They are hidden like keys that causal rows do not see.
#include <algorithm>

#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_result.h"
#include "kernels/attention/attention_unfinite.h"
#include "kernels/common/cuda.h"
#include "kernels/common/hopper_products.h"
#include "kernels/common/record_fault.h"

namespace earnest::attention::gpu::sm90a {
namespace {

using hopper::Barrier;
using hopper::kBoxBytes;
using sm80::Bytes;
using sm80::RowState;
using sm80::Strips;

constexpr int kWarpgroup = 128, kThreads = 3 * kWarpgroup, kMultiplying = 2 * kWarpgroup,
              kMultiplyingWarps = 8;
constexpr int kRows = kTileRows, kStages = 2;
constexpr int kLoadingRegisters = 40, kMultiplyingRegisters = 232;
// Barriers of the block: all who multiply, and each of their warpgroups.
constexpr int kAllMeet = 1, kWarpgroupMeets = 2;
static_assert(kKeys == hopper::kBox && kRows == 2 * hopper::kBox);

struct Stage {
  Barrier keys, values, keys_read, values_read;
};

template <int kDim>
struct Memory {  // shared, in bytes
  static constexpr int kQueries = kRows * kDim * 2, kTile = kKeys * kDim * 2;
  static constexpr int kAlignment = 1024;  // of boxes, which dynamic shared memory need not have
  static constexpr size_t kBytes = kQueries + 2 * kStages * kTile + kStages * sizeof(Stage) + kAlignment;
  static_assert(kBytes <= 227 * 1024);
  Bytes q, tiles;
  Stage* stages;
  __device__ Memory() : Memory(simt::dynamic_shared<unsigned char>(0, kBytes)) {}
  __device__ explicit Memory(Bytes shared)
      : q(shared + (kAlignment - simt::shared_address(shared) % kAlignment) % kAlignment),
        tiles(q + kQueries),
        stages(reinterpret_cast<Stage*>(&tiles[2 * kStages * kTile])) {}
  __device__ Bytes keys(int stage) const { return tiles + 2 * stage * kTile; }
  __device__ Bytes values(int stage) const { return keys(stage) + kTile; }
};

// Where a thread stands in the ring.
struct Turn {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <typename Each>
__device__ inline void walk(const Params& p, const Plan& plan, const Tile* order, const Each& each) {
  for (int64_t index = blockIdx.x; index < plan.slots * p.kv_heads; index += gridDim.x) {
    const int64_t slot = index / p.kv_heads;
    const Tile tile = order != nullptr ? order[slot] : tile_of(p, plan, slot);
    if (tile.sequence < 0) continue;
    const Rows rows(p, plan, tile, index % p.kv_heads);
    if (rows.count > 0) each(rows);
  }
}

template <int kDim>
__device__ inline void bring_tiles(const hopper::TensorMap& keys, const hopper::TensorMap& values,
                                   const Params& p, const Plan& plan, const Tile* order,
                                   const Memory<kDim>& memory) {
  Turn turn;
  walk(p, plan, order, [&](const Rows& rows) {
    const KeyTiles tiles = rows.tiles();
    const auto bring = [&](const hopper::TensorMap& from, Bytes to, int64_t tile, Barrier* there,
                           Barrier* read) {
      hopper::wait(read, turn.parity ^ 1);
      hopper::arrive_expecting(there, Memory<kDim>::kTile);
#pragma unroll
      for (int panel = 0; panel < kDim / hopper::kBox; ++panel) {
        hopper::load_box(&to[panel * kBoxBytes], from,
                         static_cast<int>(rows.kv_head * kDim) + panel * hopper::kBox,
                         static_cast<int>(rows.sequence.key_begin + tile * kKeys), there);
      }
    };
    for (int64_t tile = 0; tile < tiles.all; ++tile, turn.next()) {
      Stage& stage = memory.stages[turn.stage];
      bring(keys, memory.keys(turn.stage), tile, &stage.keys, &stage.keys_read);
      bring(values, memory.values(turn.stage), tile, &stage.values, &stage.values_read);
    }
  });
}

// s = q k^T of the warpgroup's 64 rows, whose boxes begin at q.
template <typename T, int kDim>
__device__ inline void multiply_queries(Bytes q, Bytes k, Strips<1, kKeys / 8>& s) {
  const uint32_t left = simt::shared_address(q), right = simt::shared_address(k);
  hopper::settle(s[0]);
  hopper::begin_products();
#pragma unroll
  for (int d = 0; d < kDim; d += hopper::kStep) {
    const int panel = d / hopper::kBox;
    const uint32_t within = hopper::operand_offset(false, 0, d % hopper::kBox);
    hopper::multiply_64x64x16(s[0], hopper::descriptor(left + panel * kRows * hopper::kLineBytes + within),
                              hopper::descriptor(right + panel * kBoxBytes + within), T{});
  }
  hopper::close_products();
  hopper::wait_products<0>();
  hopper::settle(s[0]);
}

// o += p v.
template <typename T, int kDim>
__device__ inline void multiply_values(const sm80::Weights<1>& p, Bytes v, Strips<1, kDim / 8>& o) {
  uint32_t a[kKeys / 16][4];
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) sm80::left_operand<1>(p, 0, k * 16, a[k]);
  hopper::settle(o[0]);
  hopper::begin_products();
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    const uint32_t at = simt::shared_address(v) + hopper::operand_offset(true, 0, k * 16);
    hopper::multiply_by(o[0], a[k], hopper::descriptor(at), T{});
  }
  hopper::close_products();
  hopper::wait_products<0>();
  hopper::settle(o[0]);
}

template <typename T, int kDim>
__device__ inline void attend(const Params& p, const Output& output, float scale, const Rows& rows,
                              const Memory<kDim>& memory, Turn* turn) {
  const int multiplying = static_cast<int>(threadIdx.x) - kWarpgroup, warpgroup = multiplying / kWarpgroup;
  const int first = warpgroup * hopper::kBox, row = first + multiplying % kWarpgroup / 32 * sm80::kStripRows;
  const KeyTiles tiles = rows.tiles();
  const auto release = [](Barrier* read) {
    if (sm80::lane() == 0) hopper::arrive_at(read, 0);
  };

  sm80::for_each_piece<hopper::kBox, kDim>(multiplying % kWarpgroup, [&](int i, int d) {
    const bool there = first + i < rows.count;
    const T* piece = static_cast<const T*>(p.q) + (there ? rows.line(first + i) * kDim + d : 0);
    simt::copy_async_16(&memory.q[sm80::place_of<kRows>(first + i, d)], piece, there ? 16 : 0);
  });
  simt::copy_async_commit();
  simt::copy_async_wait<0>();
  hopper::fence_shared();
  hopper::meet(kWarpgroupMeets + warpgroup, kWarpgroup);

  Strips<1, kDim / 8> o = {};
  RowState states[1][2];
  for (int64_t tile = 0; tile < tiles.all; ++tile, turn->next()) {
    Stage& stage = memory.stages[turn->stage];
    const Bytes v = memory.values(turn->stage);
    Strips<1, kKeys / 8> s = {};
    hopper::wait(&stage.keys, turn->parity);
    multiply_queries<T, kDim>(memory.q + first * hopper::kLineBytes, memory.keys(turn->stage), s);
    release(&stage.keys_read);
    const bool whole = tile < tiles.whole;
    const auto seen = [&](int i) { return rows.seen(row + i) - static_cast<int>(tile * kKeys); };
    if (!whole) sm80::hide_unseen<1>(s, seen);
    sm80::weigh<1>(scale, s, states, o);
    sm80::Weights<1> weights;
    sm80::round_weights<T, 1>(s, weights);
    hopper::wait(&stage.values, turn->parity);
    if (!whole &&
        hopper::meet_or(kAllMeet, kMultiplying, sm80::has_unfinite<T, kDim, kMultiplying>(v, multiplying))) {
      sm80::add_unfinite<T, kDim, 1>(weights, v, [&](int i) { return sm80::Columns{0, seen(i)}; }, o);
      hopper::meet(kAllMeet, kMultiplying);
      sm80::clear_unfinite<T, kDim, kMultiplying>(v, multiplying);
      hopper::fence_shared();
      hopper::meet(kAllMeet, kMultiplying);
    }
    multiply_values<T, kDim>(weights, v, o);
    release(&stage.values_read);
  }
  hopper::meet(kWarpgroupMeets + warpgroup, kWarpgroup);  // all have read the warpgroup's queries
  sm80::write_rows<T, kRows, kDim, 1>(p, output, rows, row, states, o, memory.q);
  hopper::meet(kWarpgroupMeets + warpgroup, kWarpgroup);  // the next tile's queries are brought
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    forward_tiles(const __grid_constant__ hopper::TensorMap keys,
                  const __grid_constant__ hopper::TensorMap values, const __grid_constant__ Params p,
                  const __grid_constant__ Output output, const __grid_constant__ Plan plan,
                  const Tile* const order) {
  const Memory<kDim> memory;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      hopper::init(&memory.stages[i].keys, 1);
      hopper::init(&memory.stages[i].values, 1);
      hopper::init(&memory.stages[i].keys_read, kMultiplyingWarps);
      hopper::init(&memory.stages[i].values_read, kMultiplyingWarps);
    }
    hopper::fence_init();
    hopper::fence_shared();
    for (int64_t n = blockIdx.x; p.fault != nullptr && n < p.sequences; n += gridDim.x) {
      const Bounds wrong = wrong_bounds(p, n);
      if (wrong != Bounds::kRight) record_fault(p.fault, {FaultOp::kAttention, n, static_cast<int>(wrong)});
    }
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    hopper::leave_registers<kLoadingRegisters>();
    if (threadIdx.x == 0) bring_tiles<kDim>(keys, values, p, plan, order, memory);
  } else {
    hopper::take_registers<kMultiplyingRegisters>();
    const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
    Turn turn;
    walk(p, plan, order, [&](const Rows& rows) { attend<T, kDim>(p, output, scale, rows, memory, &turn); });
  }
  __syncthreads();  // nobody leaves while TMA brings something
}

template <typename T, int kDim>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  hopper::TensorMap keys, values;
  const int64_t width = p.kv_heads * kDim;
  if (Status status = hopper::tensor_map(kOp, p.k, width, p.tokens_k, width, &keys); !status.ok())
    return status;
  if (Status status = hopper::tensor_map(kOp, p.v, width, p.tokens_k, width, &values); !status.ok())
    return status;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(plan.slots * p.kv_heads, device.multiprocessors));
  return simt::launch({kOp, "forward_tiles"}, forward_tiles<T, kDim>, dim3(blocks), dim3(kThreads),
                      Memory<kDim>::kBytes, p.stream, keys, values, p, output, plan, order);
}

}  // namespace

Status forward(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  if (p.type == Type::kFloat16) {
    return p.dim == 64 ? launch<Float16, 64>(p, output, plan, order)
                       : launch<Float16, 128>(p, output, plan, order);
  }
  return p.dim == 64 ? launch<BFloat16, 64>(p, output, plan, order)
                     : launch<BFloat16, 128>(p, output, plan, order);
}

}  // namespace earnest::attention::gpu::sm90a
