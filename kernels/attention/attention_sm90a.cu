// SPDX-License-Identifier: Apache-2.0
// Path sm90a, forward: a block of three warpgroups goes through listed tiles of 128 rows. One warpgroup (one
// thread of it) brings keys and values by TMA, two multiply by wgmma, 64 rows each
// (attention_sm90a_multiply.h). Softmax, hidden keys and the way out are those of path sm80.
//
// TMA brings a whole tile of keys whatever the sequence's length: those of the next sequence behind its last,
// 0 behind the last of all. They are hidden like keys that causal rows do not see.
#include <algorithm>

#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_sm90a_multiply.h"
#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"

namespace earnest::attention::gpu::sm90a {
namespace {

constexpr int kForwardThreads = 3 * kWarpgroup;
constexpr int kLoadingRegisters = 40, kMultiplyingRegisters = 232;

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

// A tile to its place in the ring. at(panel, part): where a box of it belongs.
template <typename Memory, typename At>
__device__ inline void bring_tile(const hopper::TensorMap& from, Bytes to, int column, int row,
                                  Barrier* there, Barrier* read, int parity, const At& at) {
  hopper::wait(read, parity ^ 1);
  hopper::arrive_expecting(there, Memory::kTile);
#pragma unroll
  for (int panel = 0; panel < Memory::kPanels; ++panel) {
#pragma unroll
    for (int part = 0; part < Memory::kParts; ++part)
      hopper::load_box(&to[at(panel, part)], from, column + panel * kBox, row + part * kBox, there);
  }
}

// The keys of a tile before the values of the tile before it: the order in which they are multiplied.
template <typename Memory>
__device__ inline void bring_tiles(const hopper::TensorMap& keys, const hopper::TensorMap& values,
                                   const Params& p, const Plan& plan, const Tile* order,
                                   const Memory& memory) {
  const auto of_keys = [](int panel, int part) { return Memory::box_of_keys(panel, part); };
  const auto of_values = [](int panel, int part) { return Memory::box_of_values(panel, part); };
  typename Memory::Position now, before;
  walk(p, plan, order, [&](const Rows& rows) {
    const int column = static_cast<int>(rows.kv_head) * Memory::kPanels * kBox;
    const int row = static_cast<int>(rows.sequence.key_begin);
    const int tiles = static_cast<int>(rows.tiles(Memory::kKeysOfTile).all);
    for (int tile = 0; tile <= tiles; ++tile) {
      Stage &of_tile = memory.stages[now.stage], &of_last = memory.stages[before.stage];
      if (tile < tiles)
        bring_tile<Memory>(keys, memory.keys(now.stage), column, row + tile * Memory::kKeysOfTile,
                           &of_tile.keys, &of_tile.keys_read, now.parity, of_keys);
      if (tile > 0)
        bring_tile<Memory>(values, memory.values(before.stage), column,
                           row + (tile - 1) * Memory::kKeysOfTile, &of_last.values, &of_last.values_read,
                           before.parity, of_values);
      before = now;
      if (tile < tiles) now.next();
    }
  });
}

template <typename T, int kDim, typename F>
__global__ void __launch_bounds__(kForwardThreads, 1)
    forward_tiles(const __grid_constant__ hopper::TensorMap keys,
                  const __grid_constant__ hopper::TensorMap values, const __grid_constant__ Params p,
                  const __grid_constant__ Output output, const __grid_constant__ Plan plan,
                  const Tile* const order) {
  const ForwardMemory<kDim, F::keys> memory;
  if (threadIdx.x == 0) {
    for (int i = 0; i < memory.kStages; ++i) memory.stages[i].init();
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
    if (threadIdx.x == 0) bring_tiles(keys, values, p, plan, order, memory);
  } else {
    hopper::take_registers<kMultiplyingRegisters>();
    const auto scale = static_cast<float>(p.scale * 1.4426950408889634);  // log2(e)
    typename ForwardMemory<kDim, F::keys>::Position position;
    if (multiplying_warpgroup() == 1) give_turn<F>();
    walk(p, plan, order, [&](const Rows& rows) {
      Hands<T, kDim, F> hands(p, rows, memory, scale, position);
      hands.attend(output);
      position = hands.now;
    });
    if (multiplying_warpgroup() == 0) take_turn<F>();
  }
  __syncthreads();  // nobody leaves while TMA brings something
}

template <typename T, int kDim, typename F>
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
  return simt::launch({kOp, "forward_tiles"}, forward_tiles<T, kDim, F>, dim3(blocks), dim3(kForwardThreads),
                      ForwardMemory<kDim, F::keys>::kBytes, p.stream, keys, values, p, output, plan, order);
}

template <typename F>
Status launch(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  if (p.type == Type::kFloat16)
    return (p.dim == 64 ? launch<Float16, 64, F> : launch<Float16, 128, F>)(p, output, plan, order);
  return (p.dim == 64 ? launch<BFloat16, 64, F> : launch<BFloat16, 128, F>)(p, output, plan, order);
}

}  // namespace

Status forward(const Params& p, const Output& output, const Plan& plan, const Tile* order) {
  switch (schedule_of(p)) {
    case Schedule::kSeries:
      return launch<Series>(p, output, plan, order);
    case Schedule::kTurns:
      return launch<Turns>(p, output, plan, order);
    case Schedule::kAhead:
      return launch<Ahead>(p, output, plan, order);
    case Schedule::kBoth:
      return launch<Both>(p, output, plan, order);
    default:
      return launch<Wide>(p, output, plan, order);
  }
}

}  // namespace earnest::attention::gpu::sm90a
