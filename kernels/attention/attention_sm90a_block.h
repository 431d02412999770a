// SPDX-License-Identifier: Apache-2.0
// Path sm90a, forward: how a block begins, and what its loading thread does. TMA brings a whole tile of keys
// whatever the sequence's length: those of the next sequence behind its last, 0 behind the last of all. They
// are hidden like keys that causal rows do not see.
#pragma once

#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_rows.h"
#include "kernels/attention/attention_sm90a_memory.h"
#include "kernels/common/record_fault.h"

namespace earnest::attention::gpu::sm90a {

constexpr int kForwardThreads = 3 * kWarpgroup;
constexpr int kLoadingRegisters = 40, kMultiplyingRegisters = 232;

// Barriers are made, and wrong bounds recorded, by one thread; behind this all may begin.
template <typename Memory>
__device__ inline void begin_block(const Params& p, const Memory& memory) {
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

// The loading thread, from one tile of rows to the next.
template <typename Memory>
struct Loader {
  const hopper::TensorMap &keys, &values;
  const Memory& memory;
  typename Memory::Position now;

  __device__ Loader(const hopper::TensorMap& of_keys, const hopper::TensorMap& of_values,
                    const Memory& shared, const typename Memory::Position& position = {})
      : keys(of_keys), values(of_values), memory(shared), now(position) {}

  // Tiles [first, end) of the keys that rows attend to: the keys of a tile before the values of the tile
  // before it, the order in which they are multiplied.
  __device__ void bring(const Rows& rows, int first, int end) {
    const auto of_keys = [](int panel, int part) { return Memory::box_of_keys(panel, part); };
    const auto of_values = [](int panel, int part) { return Memory::box_of_values(panel, part); };
    const int column = static_cast<int>(rows.kv_head) * Memory::kPanels * kBox;
    const int row = static_cast<int>(rows.sequence.key_begin);
    typename Memory::Position before;
    for (int tile = first; tile <= end; ++tile) {
      Stage &of_tile = memory.stages[now.stage], &of_last = memory.stages[before.stage];
      if (tile < end)
        bring_tile<Memory>(keys, memory.keys(now.stage), column, row + tile * Memory::kKeysOfTile,
                           &of_tile.keys, &of_tile.keys_read, now.parity, of_keys);
      if (tile > first)
        bring_tile<Memory>(values, memory.values(before.stage), column,
                           row + (tile - 1) * Memory::kKeysOfTile, &of_last.values, &of_last.values_read,
                           before.parity, of_values);
      before = now;
      if (tile < end) now.next();
    }
  }
};

// What TMA has to know of keys or values.
inline Status map_of(const Params& p, const void* from, hopper::TensorMap* map) {
  const int64_t width = p.kv_heads * p.dim;
  return hopper::tensor_map(kOp, from, width, p.tokens_k, width, map);
}

}  // namespace earnest::attention::gpu::sm90a
