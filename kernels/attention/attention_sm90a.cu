// SPDX-License-Identifier: Apache-2.0
// Path sm90a, forward: a block of three warpgroups goes through listed tiles of 128 rows. One warpgroup (one
// thread of it) brings keys and values by TMA (attention_sm90a_block.h), two multiply by wgmma, 64 rows each
// (attention_sm90a_multiply.h). Softmax, hidden keys and the way out are those of path sm80.
#include <algorithm>

#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_sm90a_block.h"
#include "kernels/attention/attention_sm90a_multiply.h"
#include "kernels/common/cuda.h"

namespace earnest::attention::gpu::sm90a {
namespace {

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

template <typename T, int kDim, typename F>
__global__ void __launch_bounds__(kForwardThreads, 1)
    forward_tiles(const __grid_constant__ hopper::TensorMap keys,
                  const __grid_constant__ hopper::TensorMap values, const __grid_constant__ Params p,
                  const __grid_constant__ Output output, const __grid_constant__ Plan plan,
                  const Tile* const order) {
  const ForwardMemory<kDim, F::keys> memory;
  begin_block(p, memory);
  if (threadIdx.x < kWarpgroup) {
    hopper::leave_registers<kLoadingRegisters>();
    if (threadIdx.x == 0) {
      Loader loader(keys, values, memory);
      walk(p, plan, order,
           [&](const Rows& rows) { loader.bring(rows, 0, static_cast<int>(rows.tiles(F::keys).all)); });
    }
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
  if (Status status = map_of(p, p.k, &keys); !status.ok()) return status;
  if (Status status = map_of(p, p.v, &values); !status.ok()) return status;
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
