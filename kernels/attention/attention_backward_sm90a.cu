// SPDX-License-Identifier: Apache-2.0
// Path sm90a, backward, in one pass of five products: a block has 128 keys of one key head, two warpgroups of
// it 64 each, and the tokens that see them pass by (attention_backward_turns.h says in which order).
//
//   s^T = k q^T    dp^T = v grad_out^T        per warpgroup: its keys, 64 tokens at a time
//   dv += p^T grad_out    dk += ds^T q        the same; p^T and ds^T from registers
//   dq = ds k                                 all 128 keys; a warpgroup takes half of the sums
//
// The third warpgroup multiplies nothing. One thread brings q, grad_out and the rows' numbers by TMA into
// kBackwardStages places; another adds dq to memory by TMA, in the block's turn. Barriers:
//   there, read:         of a place: its bytes are there; eight warps have read it
//   sums, sums_added:    eight warps have written dq; TMA has read it
// The n-th use of a place waits for parity n % 2 and, to write into it, of the other barrier for (n + 1) % 2.
// ds^T has two places: who writes the n-th has met, behind the (n - 1)-th, all who read the (n - 2)-th.
//
// TMA brings 64 tokens whatever the sequence's length. Those behind its last are hidden like tokens that see
// no key of the tile; keys behind the last used one come as 0.
#include <algorithm>

#include "kernels/attention/attention_backward_multiply.h"
#include "kernels/attention/attention_paths.h"
#include "kernels/common/cuda.h"

namespace earnest::attention::gpu::sm90a {
namespace {

constexpr int kBackwardThreads = 3 * kWarpgroup;
constexpr int kServingRegisters = 24, kMultiplyingRegisters = 240;

// ---- the warpgroup that serves ----

template <int kDim>
__device__ inline void bring_tokens(const hopper::TensorMap& queries, const hopper::TensorMap& grads,
                                    const Params& p, const RowNumbers* numbers, const BackwardWork& work,
                                    const BackwardMemory<kDim>& memory) {
  using Place = BackwardMemory<kDim>;
  BackwardTurn turn;
  for (Pass pass(work.tiles); pass.is_left(work.tiles); pass.next(work.group), turn.next()) {
    const int head = work.first_head + pass.member, of_numbers = work.tokens_in(pass.tile) * Place::kOfRow;
    const int64_t token = work.token(pass.tile);
    const Bytes q = memory.q(turn.stage), grad_out = memory.grad_out(turn.stage);
    Barrier* const there = &memory.barriers().there[turn.stage];
    hopper::wait(&memory.barriers().read[turn.stage], turn.parity ^ 1);
    hopper::arrive_expecting(there, 2 * Place::kPasses + of_numbers);
    hopper::load_bytes(&memory.numbers(turn.stage)[0], numbers + head * p.tokens_q + token, of_numbers,
                       there);
#pragma unroll 1
    for (int half = 0; half < Place::kHalves; ++half) {
#pragma unroll
      for (int panel = 0; panel < Place::kPanels; ++panel) {
        const int at = half * Place::kBlock + panel * kBoxBytes, inner = head * kDim + panel * kBox;
        const int outer = static_cast<int>(token) + half * kBox;
        hopper::load_box(&q[at], queries, inner, outer, there);
        hopper::load_box(&grad_out[at], grads, inner, outer, there);
      }
    }
  }
}

// What a tile of keys is first to give is written: nobody has cleared the memory.
template <int kDim>
__device__ inline void add_sums(const Params& p, float* sums, uint32_t* turns, const BackwardWork& work,
                                const BackwardMemory<kDim>& memory) {
  int parity = 0;
  for (Pass pass(work.tiles); pass.is_left(work.tiles); pass.next(work.group), parity ^= 1) {
    const int head = work.first_head + pass.member;
    uint32_t* const turn = turns + work.first_turn + pass.member * work.turn_pitch + pass.tile;
    float* const to = sums + (head * p.tokens_q + work.token(pass.tile)) * kDim;
    const int bytes = work.tokens_in(pass.tile) * kDim * static_cast<int>(sizeof(float));
    hopper::wait(&memory.barriers().sums, parity);
    hopper::wait_turn(turn, static_cast<uint32_t>(work.block));
    if (work.block == 0) {
      hopper::store_bytes(to, &memory.sums()[0], bytes);
    } else {
      hopper::add_floats(to, &memory.sums()[0], bytes);
    }
    hopper::close_copies();
    hopper::wait_read();
    hopper::arrive_at(&memory.barriers().sums_added, 0);
    hopper::wait_written();
    hopper::pass_turn(turn);
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    differentiate(const __grid_constant__ hopper::TensorMap queries,
                  const __grid_constant__ hopper::TensorMap grads, const __grid_constant__ Params p,
                  const __grid_constant__ Gradients g, const __grid_constant__ Params keys,
                  const __grid_constant__ Plan plan, const RowNumbers* const numbers, float* const sums,
                  uint32_t* const ticket, const Tile* const order) {
  const BackwardMemory<kDim> memory;
  EARNEST_SHARED(BackwardWork, work, 1);
  if (threadIdx.x == 0) {
    const int64_t drawn = atomicAdd(ticket, 1u), slot = drawn / p.kv_heads;
    const Tile tile = order != nullptr ? order[slot] : key_tile_of(keys, plan, slot);
    work[0].sequence = -1;
    if (tile.sequence >= 0) work[0] = BackwardWork(p, keys, plan, tile, drawn % p.kv_heads);
    BackwardBarriers& barriers = memory.barriers();
    for (int i = 0; i < kBackwardStages; ++i) {
      hopper::init(&barriers.there[i], 1);
      hopper::init(&barriers.read[i], kMultiplyingWarps);
    }
    hopper::init(&barriers.sums, kMultiplyingWarps);
    hopper::init(&barriers.sums_added, 1);
    hopper::fence_init();
    hopper::fence_shared();
  }
  __syncthreads();
  if (work[0].sequence < 0) return;
  if (threadIdx.x < kWarpgroup) {
    hopper::leave_registers<kServingRegisters>();
    if (threadIdx.x == 0) bring_tokens<kDim>(queries, grads, p, numbers, work[0], memory);
    if (threadIdx.x == simt::kWarpSize) add_sums<kDim>(p, sums, ticket + 1, work[0], memory);
  } else {
    hopper::take_registers<kMultiplyingRegisters>();
    multiply<T, kDim>(p, g, work[0], memory);
  }
  __syncthreads();  // nobody leaves while TMA brings or takes something
}

// ---- before, and behind ----

constexpr int kPlain = 256;               // threads
constexpr int64_t kMostBlocks = 1 << 16;  // a block takes further pieces behind them

__global__ void __launch_bounds__(kPlain) clear_turns(uint32_t* const counts, const int64_t all) {
  for (int64_t i = blockIdx.x * int64_t{kPlain} + threadIdx.x; i < all; i += gridDim.x * int64_t{kPlain})
    counts[i] = 0;
}

// dq of a row, four numbers a thread. A row that sees nothing has had no turn. What is below the normal
// numbers, or -0, may or may not have become 0 in further turns: here it is 0.
template <typename T, int kDim>
__global__ void __launch_bounds__(kPlain)
    round_queries(const Params p, const Gradients g, const float* const sums) {
  constexpr int kPieces = kDim / 4;
  constexpr float kLeast = 1.17549435e-38f;
  const auto scale = static_cast<float>(p.scale);
  const int64_t all = p.tokens_q * p.heads * kPieces;
  for (int64_t i = blockIdx.x * int64_t{kPlain} + threadIdx.x; i < all; i += gridDim.x * int64_t{kPlain}) {
    const int64_t row = i / kPieces, token = row / p.heads, head = row % p.heads;
    const int piece = place_of_sum(token, static_cast<int>(i % kPieces));
    float x[4] = {};
    if (g.lse[row] != -INFINITY) {
      const float4 sum =
          *reinterpret_cast<const float4*>(sums + (head * p.tokens_q + token) * kDim + piece * 4);
      x[0] = sum.x, x[1] = sum.y, x[2] = sum.z, x[3] = sum.w;
#pragma unroll
      for (float& number : x) number = fabsf(number) < kLeast ? 0 : number * scale;
    }
    uint2 pair;
    pair.x = sm80::pack(x[0], x[1], T{}), pair.y = sm80::pack(x[2], x[3], T{});
    *reinterpret_cast<uint2*>(static_cast<T*>(g.grad_q) + i * 4) = pair;
  }
}

unsigned blocks_for(int64_t all) {
  return static_cast<unsigned>(std::min(blocks_of(all, kPlain), kMostBlocks));
}

template <typename T, int kDim>
Status launch_blocks(const Params& p, const Gradients& g, const BackwardPlan& plan, const RowNumbers* numbers,
                     float* sums, uint32_t* ticket, const Tile* order) {
  hopper::TensorMap queries, grads;
  const int64_t width = p.heads * kDim, tokens = std::max<int64_t>(p.tokens_q, 1);
  const void *q = p.tokens_q > 0 ? p.q : p.k,
             *grad_out = p.tokens_q > 0 ? g.grad_out : p.k;  // nobody reads it
  if (Status status = hopper::tensor_map(kOp, q, width, tokens, width, &queries); !status.ok()) return status;
  if (Status status = hopper::tensor_map(kOp, grad_out, width, tokens, width, &grads); !status.ok())
    return status;
  return simt::launch({kOp, "differentiate"}, differentiate<T, kDim>,
                      dim3(static_cast<unsigned>(plan.keys.slots * p.kv_heads)), dim3(kBackwardThreads),
                      BackwardMemory<kDim>::kBytes, p.stream, queries, grads, p, g, with_keys_as_rows(p),
                      plan.keys, numbers, sums, ticket, order);
}

template <typename T, int kDim>
Status launch(const Params& p, const Gradients& g, const BackwardPlan& plan, const RowNumbers* numbers,
              const Tile* order) {
  auto* const workspace = static_cast<char*>(p.workspace);
  auto* const sums = reinterpret_cast<float*>(workspace + plan.turns.sums);
  auto* const ticket = reinterpret_cast<uint32_t*>(workspace + plan.turns.ticket);
  if (plan.keys.slots > 0 && p.tokens_k > 0) {
    if (Status status = simt::launch({kOp, "clear_turns"}, clear_turns, dim3(blocks_for(plan.turns.counts)),
                                     dim3(kPlain), 0, p.stream, ticket, plan.turns.counts);
        !status.ok())
      return status;
    if (Status status = launch_blocks<T, kDim>(p, g, plan, numbers, sums, ticket, order); !status.ok())
      return status;
  }
  if (p.tokens_q == 0) return {};
  return simt::launch({kOp, "round_queries"}, round_queries<T, kDim>,
                      dim3(blocks_for(p.tokens_q * p.heads * kDim / 4)), dim3(kPlain), 0, p.stream, p, g,
                      sums);
}

}  // namespace

Status backward(const Params& p, const Gradients& g, const BackwardPlan& plan, const RowNumbers* numbers,
                const Tile* order) {
  if (p.type == Type::kFloat16)
    return (p.dim == 64 ? launch<Float16, 64> : launch<Float16, 128>)(p, g, plan, numbers, order);
  return (p.dim == 64 ? launch<BFloat16, 64> : launch<BFloat16, 128>)(p, g, plan, numbers, order);
}

}  // namespace earnest::attention::gpu::sm90a
