// SPDX-License-Identifier: Apache-2.0
// A tile of rows through tiles of keys, on path sm80: a block of four warps, each with one or two strips of
// 16 rows (Dao 2023, "FlashAttention-2"). Keys and values have one place in shared memory each. The next keys
// are on their way while softmax and the product with values run, and values during scores and softmax; a
// second block of the multiprocessor multiplies meanwhile.
#pragma once

#include "kernels/attention/attention_rows.h"
#include "kernels/attention/attention_softmax.h"
#include "kernels/attention/attention_unfinite.h"

namespace earnest::attention::gpu::sm80 {

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

// The rows' queries on their way; they are there when the first keys are.
template <typename T, int kDim, int S>
__device__ inline void load_queries(const Params& p, const Rows& rows, const Memory<kDim, S>& memory) {
  load_rows<Memory<kDim, S>::kRows, kDim>(memory.q, static_cast<const T*>(p.q), rows.count,
                                          [&](int i) { return rows.line(i) * kDim; });
}

// Tiles of keys [first, end). kFew: a warp that has no row does nothing but what all wait for.
template <typename T, int kDim, int S, bool kFew>
__device__ inline void attend_tiles(const Params& p, float scale, const Rows& rows, int first, int end,
                                    int whole_tiles, const Memory<kDim, S>& memory, RowState (&states)[S][2],
                                    Strips<S, kDim / 8>& o) {
  constexpr int kRows = Memory<kDim, S>::kRows;
  const int row = warp() * S * kStripRows;
  const bool idle = kFew && row >= rows.count;
  const auto load = [&](const void* from, Bytes to, int tile) {
    const int64_t pitch = p.kv_heads * kDim, first_key = int64_t{tile} * kKeys;  // from key to key
    const T* const begin =
        static_cast<const T*>(from) + (rows.sequence.key_begin + first_key) * pitch + rows.kv_head * kDim;
    load_rows<kKeys, kDim>(to, begin, static_cast<int>(between(0, rows.sequence.keys - first_key, kKeys)),
                           [&](int key) { return key * pitch; });
    simt::copy_async_commit();
  };

  if (first < end) load(p.k, memory.k, first);
  for (int tile = first; tile < end; ++tile) {
    simt::copy_async_wait<0>();
    __syncthreads();  // keys are there, and everybody has read the last tile's values
    load(p.v, memory.v, tile);
    Strips<S, kKeys / 8> s = {};
    if (!idle) add_scores<T, kRows, kDim, S>(memory.q, memory.k, row, s);
    __syncthreads();  // everybody has read the keys
    if (tile + 1 < end) {
      load(p.k, memory.k, tile + 1);
    } else {
      simt::copy_async_commit();  // nothing, so that the values are the last group but one
    }
    const bool whole = tile < whole_tiles;
    const auto seen = [&](int i) { return rows.seen(row + i) - tile * kKeys; };
    Weights<S> weights;
    if (!idle) {
      if (!whole) hide_unseen<S>(s, seen);
      weigh<S>(scale, s, states, o);
      round_weights<T, S>(s, weights);
    }
    simt::copy_async_wait<1>();
    if (__syncthreads_or(!whole && rows.causal && has_unfinite<T, kDim>(memory.v, thread()))) {
      if (!idle) add_unfinite<T, kDim, S>(weights, memory.v, [&](int i) { return Columns{0, seen(i)}; }, o);
      __syncthreads();
      clear_unfinite<T, kDim>(memory.v, thread());
      __syncthreads();
    }
    if (!idle) add_values<T, kDim, S>(weights, memory.v, o);
  }
}

}  // namespace earnest::attention::gpu::sm80
