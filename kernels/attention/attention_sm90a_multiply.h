// SPDX-License-Identifier: Apache-2.0
// Path sm90a, forward: what a warpgroup that multiplies does with its 64 rows. Queries, sums and weights are
// in its registers, keys and values in shared memory. In each step it asks for the scores of a tile of keys
// and for the product of the weights and values of the tile before, in this order:
//
//   wait for the turn; ask for s = q k^T of tile j, then for o += p v of tile j - 1; give the turn away
//   wait for s (going ahead; else for both); softmax of tile j; wait for o; scale o down; round p
//
// Turns go to and fro between the two warpgroups, from one tile of rows to the next. Nobody holds a turn
// while it waits for anything else.
#pragma once

#include "kernels/attention/attention_result.h"
#include "kernels/attention/attention_sm90a_memory.h"
#include "kernels/attention/attention_unfinite.h"

namespace earnest::attention::gpu::sm90a {

// Barriers of the block: all who multiply, each of their warpgroups, and whose turn it is.
constexpr int kAllMeet = 1, kWarpgroupMeets = 2, kTurnOf = 4;

__device__ inline int multiplying_thread() { return static_cast<int>(threadIdx.x) - kWarpgroup; }
// For what is done once for a tile of rows: addresses of it are not kept in registers through all of them.
__device__ inline int thread_afresh() { return sm80::afresh(static_cast<int>(threadIdx.x)) - kWarpgroup; }
__device__ inline int multiplying_warpgroup() { return static_cast<int>(threadIdx.x / kWarpgroup) - 1; }

__device__ inline void meet_warpgroup() {
  hopper::meet(kWarpgroupMeets + multiplying_warpgroup(), kWarpgroup);
}

// The second warpgroup gives the first turn, and the first takes the last one, which nobody else would.
template <typename F>
__device__ inline void take_turn() {
  if constexpr (F::takes_turns) hopper::meet(kTurnOf + multiplying_warpgroup(), kMultiplying);
}
template <typename F>
__device__ inline void give_turn() {
  if constexpr (F::takes_turns) hopper::pass(kTurnOf + 1 - multiplying_warpgroup(), kMultiplying);
}

template <typename T, int kDim, typename F>
struct Hands {
  static constexpr int kColumns = F::keys / 8;
  using Memory = ForwardMemory<kDim, F::keys>;
  using Position = typename Memory::Position;

  const Params& p;
  const Rows& rows;
  const Memory& memory;
  float scale;
  Position now, before;  // of the tile, and of the one before
  uint32_t q[kDim / hopper::kStep][4];
  float s[1][kColumns][4], o[1][kDim / 8][4] = {};
  sm80::Weights<1, kColumns> weights;
  sm80::RowState states[1][2];
  float keep[2];

  __device__ Hands(const Params& params, const Rows& of_tile, const Memory& shared, float factor,
                   const Position& position)
      : p(params), rows(of_tile), memory(shared), scale(factor), now(position), before(position) {}

  static __device__ int first_row() { return multiplying_warpgroup() * kBox; }
  static __device__ int warp_row(int thread = multiplying_thread()) {
    return thread / simt::kWarpSize * sm80::kStripRows;
  }
  static __device__ void release(Barrier* barrier) {
    if (sm80::lane() == 0) hopper::arrive_at(barrier, 0);
  }
  // Of the tile's keys those that row i of the warp sees, the first so many.
  __device__ int seen(int i, int tile) const { return rows.seen(warp_row() + i) - tile * F::keys; }

  // Through shared memory, where the way out has room later.
  __device__ void bring_queries() {
    sm80::for_each_piece<kBox, kDim>(thread_afresh() % kWarpgroup, [&](int i, int d) {
      const int row = first_row() + i;
      const bool there = row < rows.count;
      const T* piece = static_cast<const T*>(p.q) + (there ? rows.line(row) * kDim + d : 0);
      simt::copy_async_16(&memory.q[sm80::place_of<kTileRows>(row, d)], piece, there ? 16 : 0);
    });
    simt::copy_async_commit();
    simt::copy_async_wait<0>();
    meet_warpgroup();
    const int thread = thread_afresh();
    const sm80::Corner corner(thread % simt::kWarpSize);
#pragma unroll
    for (int step = 0; step < kDim / hopper::kStep; ++step) {
      const int line = warp_row(thread) + 8 * corner.low, d = step * hopper::kStep;
      simt::ldmatrix_x4(q[step],
                        &memory.q[sm80::line_of<kTileRows>(line, d, corner.high, thread % simt::kWarpSize)]);
    }
  }

  __device__ void ask_scores() {
    const uint32_t k = simt::shared_address(memory.keys(now.stage));
#pragma unroll
    for (int d = 0; d < kDim; d += hopper::kStep) {
      const uint32_t at = Memory::box_of_keys(d / kBox, 0) + hopper::operand_offset(false, 0, d % kBox);
      hopper::multiply_rows(s[0], q[d / hopper::kStep], hopper::descriptor(k + at), T{}, d > 0);
    }
    hopper::close_products();
  }
  __device__ void ask_sums() {
    const uint32_t v = simt::shared_address(memory.values(before.stage));
#pragma unroll
    for (int key = 0; key < F::keys; key += hopper::kStep) {
      uint32_t a[4];
      sm80::left_operand(weights, 0, key, a);
      const uint32_t at = Memory::box_of_values(0, key / kBox) + hopper::operand_offset(true, 0, key % kBox);
      hopper::multiply_by(o[0], a, hopper::descriptor(v + at), T{});
    }
    hopper::close_products();
  }
  __device__ void sums_are_there() {
    hopper::settle(o[0]);
    hopper::keep(weights[0]);
    release(&memory.stages[before.stage].values_read);
  }

  __device__ void weigh(int tile, bool whole) {
    if (!whole) sm80::hide_unseen<1>(s, [&](int i) { return seen(i, tile); });
#pragma unroll
    for (int half = 0; half < 2; ++half) keep[half] = sm80::weigh_row(scale, half, s[0], states[0][half]);
  }
  // Behind the product with the tile before.
  __device__ void round(int tile, bool whole) {
#pragma unroll
    for (int half = 0; half < 2; ++half) sm80::scale_row(keep[half], half, o[0]);
    sm80::round_weights<T, 1>(s, weights);
    if (!whole) look_over_values(tile);
  }
  // What is not finite among the values of a tile that is not seen whole is added by hand, and cleared.
  __device__ void look_over_values(int tile) {
    const Bytes v = memory.values(now.stage);
    constexpr int kPart = kBox * kDim * 2;
    const int thread = multiplying_thread();
    bool found = false;
#pragma unroll
    for (int part = 0; part < Memory::kParts; ++part)
      found |= sm80::has_unfinite<T, kDim, kMultiplying>(v + part * kPart, thread);
    if (!hopper::meet_or(kAllMeet, kMultiplying, found)) return;
#pragma unroll
    for (int part = 0; part < Memory::kParts; ++part) {
      sm80::Weights<1> of_part;
#pragma unroll
      for (int j = 0; j < kBox / 8; ++j)
        of_part[0][j][0] = weights[0][8 * part + j][0], of_part[0][j][1] = weights[0][8 * part + j][1];
      sm80::add_unfinite<T, kDim, 1>(
          of_part, v + part * kPart, [&](int i) { return sm80::Columns{0, seen(i, tile) - part * kBox}; }, o);
    }
    hopper::meet(kAllMeet, kMultiplying);
#pragma unroll
    for (int part = 0; part < Memory::kParts; ++part)
      sm80::clear_unfinite<T, kDim, kMultiplying>(v + part * kPart, thread);
    hopper::fence_shared();
    hopper::meet(kAllMeet, kMultiplying);
  }

  // Asks for products with the tile's keys and with the values of the tile before, where there are such.
  template <bool kScores, bool kSums>
  __device__ void ask() {
    if (kScores) hopper::wait(&memory.stages[now.stage].keys, now.parity);
    take_turn<F>();
    if (kSums) hopper::settle(o[0]);
    hopper::begin_products();
    if (kScores) ask_scores();
    if (kSums) ask_sums();
    give_turn<F>();
  }
  template <bool kIsFirst>
  __device__ void step(int tile, bool whole) {
    constexpr bool kBeside = F::goes_ahead && !kIsFirst;
    ask<true, !kIsFirst>();
    hopper::wait_products<kBeside ? 1 : 0>();
    hopper::settle(s[0]);
    release(&memory.stages[now.stage].keys_read);
    weigh(tile, whole);
    // What stands before the loop of this wait is done before the next one, behind which ptxas would put it.
    hopper::settle(s[0]);
    hopper::wait(&memory.stages[now.stage].values, now.parity);
    if (kBeside) hopper::wait_products<0>();
    if (!kIsFirst) sums_are_there();
    round(tile, whole);
    before = now;
    now.next();
  }

  // Tiles [first, end) of keys, of which those before `whole`, which may be in shared memory, are seen whole.
  __device__ void attend_tiles(int first, int end, const int& whole) {
    if (first >= end) return;
    step<true>(first, first < whole);
    for (int tile = first + 1; tile < end; ++tile) step<false>(tile, tile < whole);
    ask<false, true>();
    hopper::wait_products<0>();
    sums_are_there();
  }
  __device__ void write(const Output& output) {
    sm80::write_rows<T, kTileRows, kDim, 1>(p, output, rows, warp_row(thread_afresh()), states, o, memory.q);
  }
  __device__ void attend(const Output& output) {
    const KeyTiles tiles = rows.tiles(F::keys);
    bring_queries();
    attend_tiles(0, static_cast<int>(tiles.all), static_cast<int>(tiles.whole));
    write(output);
    meet_warpgroup();  // the next queries are brought
  }
};

}  // namespace earnest::attention::gpu::sm90a
