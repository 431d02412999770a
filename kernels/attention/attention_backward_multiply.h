// SPDX-License-Identifier: Apache-2.0
// Path sm90a, backward: what a warpgroup that multiplies does with its 64 keys. Columns of its scores are
// tokens, rows are keys. ds^T has two places: who writes the n-th has met, behind the (n - 1)-th, all who
// have read the (n - 2)-th.
#pragma once

#include "kernels/attention/attention_backward_memory.h"
#include "kernels/attention/attention_result.h"

namespace earnest::attention::gpu::sm90a {

using sm80::afresh;
using sm80::Strips;

constexpr int kAllMeet = 1;  // barrier of those who multiply
constexpr double kLog2E = 1.4426950408889634;

// Keys or values of the tile, those behind the last used one 0, by all who multiply.
template <typename T, int kDim>
__device__ inline void load_keys(const void* from, const BackwardWork& work, Bytes to) {
  const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
  sm80::for_each_piece<kTileRows, kDim, kMultiplying>(thread, [&](int key, int d) {
    const bool there = key < work.used;
    const T* piece = static_cast<const T*>(from) + (there ? work.first_line + key * work.key_pitch + d : 0);
    const int block = key / kBox * BackwardMemory<kDim>::kBlock;
    simt::copy_async_16(&to[block + sm80::place_of<kBox>(key % kBox, d)], piece, there ? 16 : 0);
  });
  simt::copy_async_commit();
  simt::copy_async_wait<0>();
  hopper::fence_shared();
  hopper::meet(kAllMeet, kMultiplying);
}

// s += a b^T over the head's numbers, of 64 rows each; not awaited.
template <typename T, int kDim>
__device__ inline void ask_scores(Bytes a, Bytes b, float (&s)[8][4]) {
  const uint32_t left = simt::shared_address(a), right = simt::shared_address(b);
#pragma unroll
  for (int d = 0; d < kDim; d += hopper::kStep) {
    const uint32_t at = d / kBox * kBoxBytes + hopper::operand_offset(false, 0, d % kBox);
    hopper::multiply_64x64x16(s, hopper::descriptor(left + at), hopper::descriptor(right + at), T{});
  }
  hopper::close_products();
}

// sums += a b, of 64 rows of b; not awaited.
template <typename T, int kDim>
__device__ inline void ask_sums(const uint32_t (&a)[kBox / 16][4], Bytes b, float (&sums)[kDim / 8][4]) {
  hopper::settle(sums);
  hopper::begin_products();
#pragma unroll
  for (int k = 0; k < kBox / 16; ++k) {
    const uint32_t at = simt::shared_address(b) + hopper::operand_offset(true, 0, k * 16);
    hopper::multiply_by(sums, a[k], hopper::descriptor(at), T{});
  }
  hopper::close_products();
}

// As the left operand of the next product.
template <typename T>
__device__ inline void round_operand(const float (&from)[8][4], uint32_t (&a)[kBox / 16][4]) {
#pragma unroll
  for (int k = 0; k < kBox / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[k][i] = sm80::pack(from[2 * k + i / 2][i % 2 * 2], from[2 * k + i / 2][i % 2 * 2 + 1], T{});
  }
}

// A warpgroup's hands: what it holds and where. Columns of its scores are tokens, rows its keys.
template <typename T, int kDim>
struct Hands {
  using Place = BackwardMemory<kDim>;
  const Params& p;
  const BackwardWork& work;
  const BackwardMemory<kDim>& memory;
  float factor;
  bool keys_unfinite;
  float dk[1][kDim / 8][4] = {}, dv[1][kDim / 8][4] = {};

  static __device__ int multiplying() { return static_cast<int>(threadIdx.x) - kWarpgroup; }
  static __device__ int warpgroup() { return multiplying() / kWarpgroup; }
  static __device__ int strip() { return multiplying() % kWarpgroup / simt::kWarpSize * sm80::kStripRows; }
  static __device__ void release(Barrier* barrier) {
    if (sm80::lane() == 0) hopper::arrive_at(barrier, 0);
  }

  static __device__ RowNumbers numbers(Bytes of, int column) {
    return *reinterpret_cast<const RowNumbers*>(&of[column * Place::kOfRow]);
  }
  // Of 64 tokens, those that see a key of the strip.
  __device__ Columns seeing(int row, int first) const {
    return work.seeing(warpgroup() * kBox + strip() + row, first);
  }
  // Where a token does not see the key, 0.
  __device__ void hide(int first, float (&s)[8][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Columns sees = seeing(sm80::strip_row(half), afresh(first));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 8 * j + sm80::strip_column() + i;
          if (at < sees.begin || at >= sees.end) s[j][2 * half + i] = 0;
        }
      }
    }
  }
  __device__ void weigh(Bytes of, float (&s)[8][4]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const RowNumbers row = numbers(of, 8 * j + sm80::strip_column() + i);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& score = s[j][2 * half + i];
          score = sm80::exp2_of(fmaf(score - row.base, factor, -row.shift));
        }
      }
    }
  }
  __device__ void differentiate(Bytes of, const float (&weights)[8][4], float (&ds)[8][4]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float delta = numbers(of, 8 * j + sm80::strip_column() + i).delta;
#pragma unroll
        for (int half = 0; half < 2; ++half)
          ds[j][2 * half + i] = weights[j][2 * half + i] * (ds[j][2 * half + i] - delta);
      }
    }
  }
  __device__ void store_scores(const uint32_t (&a)[kBox / 16][4], Bytes to) const {
    const int row = afresh(strip() + sm80::strip_row(0)), column = 2 * sm80::strip_column();
#pragma unroll
    for (int k = 0; k < kBox / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int place = sm80::place_of<kBox>(row, 16 * k + 8 * (i / 2)) + i % 2 * 8 * sm80::kLineBytes;
        *reinterpret_cast<uint32_t*>(&to[place + column]) = a[k][i];
      }
    }
  }

  // Whether anything of what hides is not finite: then grad_out's is added to dv where it is seen, and both
  // operands are cleared of it.
  __device__ void clear_tokens(const uint32_t (&weights)[kBox / 16][4], Bytes q, Bytes grad_out, int first) {
    const bool found = sm80::has_unfinite<T, kDim, kMultiplying>(q, multiplying()) ||
                       sm80::has_unfinite<T, kDim, kMultiplying>(grad_out, multiplying());
    if (!hopper::meet_or(kAllMeet, kMultiplying, found)) return;
    uint32_t pairs[1][8][2];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) pairs[0][j][half] = weights[j / 2][j % 2 * 2 + half];
    }
    sm80::add_unfinite<T, kDim, 1>(pairs, grad_out, [&](int row) { return seeing(row, first); }, dv);
    hopper::meet(kAllMeet, kMultiplying);
    sm80::clear_unfinite<T, kDim, kMultiplying>(q, multiplying());
    sm80::clear_unfinite<T, kDim, kMultiplying>(grad_out, multiplying());
    hopper::fence_shared();
    hopper::meet(kAllMeet, kMultiplying);
  }

  __device__ void ask_both(Bytes q, Bytes grad_out, float (&s)[8][4], float (&dp)[8][4]) const {
    hopper::settle(s), hopper::settle(dp);
    hopper::begin_products();
    ask_scores<T, kDim>(memory.k() + warpgroup() * Place::kBlock, q, s);
    ask_scores<T, kDim>(memory.v() + warpgroup() * Place::kBlock, grad_out, dp);
  }

  // dv and dk of 64 tokens, and ds^T into shared memory. Where all is seen, weights are computed beside dp's
  // product, and ds beside dv's.
  __device__ void differentiate_whole(Bytes q, Bytes grad_out, Bytes numbers, Bytes to) {
    float s[8][4] = {}, ds[8][4] = {};
    uint32_t weights[kBox / 16][4], gradients[kBox / 16][4];
    ask_both(q, grad_out, s, ds);
    hopper::wait_products<1>();
    hopper::settle(s);
    weigh(numbers, s);
    round_operand<T>(s, weights);
    ask_sums<T, kDim>(weights, grad_out, dv[0]);
    hopper::wait_products<1>();
    hopper::settle(ds);
    differentiate(numbers, s, ds);
    round_operand<T>(ds, gradients);
    store_scores(gradients, to);
    ask_sums<T, kDim>(gradients, q, dk[0]);
    hopper::wait_products<0>();
    hopper::keep(weights), hopper::keep(gradients);
  }
  __device__ void differentiate_cut(Bytes q, Bytes grad_out, Bytes numbers, Bytes to, int first) {
    float s[8][4] = {}, ds[8][4] = {};
    uint32_t weights[kBox / 16][4], gradients[kBox / 16][4];
    ask_both(q, grad_out, s, ds);
    hopper::wait_products<0>();
    hopper::settle(s), hopper::settle(ds);
    weigh(numbers, s);
    differentiate(numbers, s, ds);
    hide(first, s), hide(first, ds);
    round_operand<T>(s, weights), round_operand<T>(ds, gradients);
    store_scores(gradients, to);
    clear_tokens(weights, q, grad_out, first);
    ask_sums<T, kDim>(weights, grad_out, dv[0]);
    ask_sums<T, kDim>(gradients, q, dk[0]);
    hopper::wait_products<0>();
    hopper::keep(weights), hopper::keep(gradients);
  }
  __device__ void differentiate_tokens(const Pass& pass, int half, int stage, int turn) {
    const Bytes q = memory.q(stage) + half * Place::kBlock,
                grad_out = memory.grad_out(stage) + half * Place::kBlock,
                numbers = memory.numbers(stage) + half * kBox * Place::kOfRow,
                to = memory.scores(turn, half, warpgroup());
    if (pass.is_whole(work.tiles)) {
      differentiate_whole(q, grad_out, numbers, to);
    } else {
      differentiate_cut(q, grad_out, numbers, to, pass.tile * Place::kTokens + half * kBox);
    }
    hopper::settle(dv[0]), hopper::settle(dk[0]);
  }

  // The warpgroup's 64 x 64 of dq: of the tokens' half `rows`, and panel `panel` of the head's numbers.
  static __device__ int rows_half() { return kDim == 64 ? warpgroup() : 0; }
  static __device__ int panel() { return kDim == 64 ? 0 : warpgroup(); }
  __device__ void ask_queries(int turn, float (&dq)[8][4]) const {
    hopper::settle(dq);
    hopper::begin_products();
#pragma unroll
    for (int key = 0; key < kTileRows; key += hopper::kStep) {
      const uint32_t within = hopper::operand_offset(true, 0, key % kBox);
      const Bytes left = memory.scores(turn, rows_half(), key / kBox),
                  right = memory.k() + key / kBox * Place::kBlock + panel() * kBoxBytes;
      hopper::multiply_transposed(dq, hopper::descriptor(simt::shared_address(left) + within),
                                  hopper::descriptor(simt::shared_address(right) + within), T{});
    }
    hopper::close_products();
  }
  // Where keys hide that are not finite: whoever sees one has a gradient of NaN there, 0 or NaN times it.
  // For this product they are 0, then they are brought anew.
  __device__ void ask_queries_finite(const Pass& pass, int turn, float (&dq)[1][8][4]) {
    const int first = pass.tile * Place::kTokens + rows_half() * kBox + strip();
    constexpr sm80::Weights<1> kNone = {};
    for (int block = 0; block < 2; ++block) {
      sm80::add_unfinite<T, kBox, 1>(
          kNone, memory.k() + block * Place::kBlock + panel() * kBoxBytes,
          [&](int row) { return work.seen(first + row, block * kBox); }, dq);
    }
    hopper::meet(kAllMeet, kMultiplying);
    for (int block = 0; block < 2; ++block)
      sm80::clear_unfinite<T, kDim, kMultiplying>(memory.k() + block * Place::kBlock, multiplying());
    hopper::fence_shared();
    hopper::meet(kAllMeet, kMultiplying);
    ask_queries(turn, dq[0]);
    hopper::wait_products<0>();
    hopper::meet(kAllMeet, kMultiplying);
    load_keys<T, kDim>(p.k, work, memory.k());
  }
  __device__ void give_queries(const Pass& pass, const float (&dq)[8][4], int parity) const {
    const int row = afresh(rows_half() * kBox + strip() + sm80::strip_row(0));
    const int number = panel() * kBox + sm80::strip_column();
    const int64_t token = work.token(pass.tile) + row;
    const Bytes to = memory.sums() + (row * kDim + number % 4) * 4;
    hopper::wait(&memory.barriers().sums_added, parity ^ 1);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int piece = place_of_sum(token, number / 4 + 2 * j) * 16;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(&to[piece + half * 8 * kDim * 4]) =
            make_float2(dq[j][2 * half], dq[j][2 * half + 1]);
    }
    hopper::fence_shared();
    __syncwarp();
    release(&memory.barriers().sums);
  }

  __device__ void pass_all() {
    BackwardTurn turn;
    int of_scores = 0;
    for (Pass pass(work.tiles); pass.is_left(work.tiles);
         pass.next(work.group), turn.next(), of_scores ^= 1) {
      hopper::wait(&memory.barriers().there[turn.stage], turn.parity);
#pragma unroll 1
      for (int half = 0; half < Place::kHalves; ++half)
        differentiate_tokens(pass, half, turn.stage, of_scores);
      __syncwarp();
      release(&memory.barriers().read[turn.stage]);
      hopper::fence_shared();
      hopper::meet(kAllMeet, kMultiplying);
      float dq[1][8][4] = {};
      if (keys_unfinite && !pass.is_whole(work.tiles)) {
        ask_queries_finite(pass, of_scores, dq);
      } else {
        ask_queries(of_scores, dq[0]);
        hopper::wait_products<0>();
      }
      hopper::settle(dq[0]);
      give_queries(pass, dq[0], of_scores);
    }
  }

  __device__ void write(const float (&sums)[1][kDim / 8][4], float by, Bytes through, void* to) const {
    const int first = warpgroup() * kBox;
    sm80::write_sums<T, kBox, kDim, 1>(
        sums, by, through + warpgroup() * Place::kBlock, strip(), work.room - first, static_cast<T*>(to),
        [&](int i) { return first + i < work.used; },
        [&](int i) { return work.first_line + (first + i) * work.key_pitch; });
  }
};

template <typename T, int kDim>
__device__ inline void multiply(const Params& p, const Gradients& g, const BackwardWork& work,
                                const BackwardMemory<kDim>& memory) {
  using Place = BackwardMemory<kDim>;
  using Own = Hands<T, kDim>;
  load_keys<T, kDim>(p.k, work, memory.k());
  load_keys<T, kDim>(p.v, work, memory.v());
  bool found = false;
  for (int block = 0; block < 2; ++block)
    found |=
        sm80::has_unfinite<T, kDim, kMultiplying>(memory.k() + block * Place::kBlock, Own::multiplying());
  const bool keys_unfinite = hopper::meet_or(kAllMeet, kMultiplying, found && p.causal);
  Own own{p, work, memory, static_cast<float>(p.scale * kLog2E), keys_unfinite};
  own.pass_all();
  hopper::meet(kAllMeet, kMultiplying);  // all have read keys and values
  own.write(own.dk, static_cast<float>(p.scale), memory.k(), g.grad_k);
  own.write(own.dv, 1.0f, memory.v(), g.grad_v);
}

}  // namespace earnest::attention::gpu::sm90a
