// SPDX-License-Identifier: Apache-2.0
// Path sm90a, backward, in one pass of five products: a block has 128 keys of one key head, two warpgroups of
// it 64 each, and the tokens that see them pass by (attention_backward_turns.h says in which order).
//
//   s^T = k q^T    dp^T = v grad_out^T        per warpgroup: its keys, 64 tokens at a time
//   dv += p^T grad_out    dk += ds^T q        the same; p^T and ds^T from registers
//   dq = ds k                                 all 128 keys; a warpgroup takes half of the sums
//
// The third warpgroup multiplies nothing. One thread brings q, grad_out and the rows' numbers by TMA into
// kStages places; another adds dq to memory by TMA, in the block's turn. Barriers:
//   there, read:         of a place: its bytes are there; eight warps have read it
//   sums, sums_added:    eight warps have written dq; TMA has read it
// The n-th use of a place waits for parity n % 2 and, to write into it, of the other barrier for (n + 1) % 2.
// ds^T has two places: who writes the n-th has met, behind the (n - 1)-th, all who read the (n - 2)-th.
//
// TMA brings 64 tokens whatever the sequence's length. Those behind its last are hidden like tokens that see
// no key of the tile; keys behind the last used one come as 0.
#include "kernels/attention/attention_backward_turns.h"
#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_result.h"
#include "kernels/attention/attention_unfinite.h"
#include "kernels/common/cuda.h"
#include "kernels/common/hopper_turns.h"

namespace earnest::attention::gpu::sm90a {
namespace {

using hopper::Barrier;
using hopper::kBox;
using hopper::kBoxBytes;
using sm80::Bytes;
using sm80::Columns;
using sm80::Strips;

constexpr int kWarpgroup = 128, kThreads = 3 * kWarpgroup, kMultiplying = 2 * kWarpgroup,
              kMultiplyingWarps = 8;
constexpr int kStages = 2;
constexpr int kServingRegisters = 24, kMultiplyingRegisters = 240;
constexpr int kAllMeet = 1;  // barrier of those who multiply
constexpr double kLog2E = 1.4426950408889634;
static_assert(kKeys == kBox && kTileRows == 2 * kBox);

struct Barriers {
  Barrier there[kStages], read[kStages], sums, sums_added;
};

template <int kDim>
struct Memory {  // shared, in bytes. An operand is blocks of 64 rows, each of kPanels boxes
  static constexpr int kTokens = tile_tokens(kDim), kHalves = kTokens / kBox, kPanels = kDim / kBox;
  static constexpr int kBlock = kPanels * kBoxBytes, kStays = 2 * kBlock, kPasses = kHalves * kBlock;
  static constexpr int kScores = kHalves * 2 * kBoxBytes, kSums = kTokens * kDim * 4,
                       kNumbers = kTokens * sizeof(RowNumbers);
  static constexpr int kAlignment = 1024;  // of boxes, which dynamic shared memory need not have
  static constexpr size_t kBytes = 2 * kStays + kStages * (2 * kPasses + kNumbers) + 2 * kScores + kSums +
                                   sizeof(Barriers) + kAlignment;
  static_assert(kBytes <= 227 * 1024);
  Bytes k, v, passing, scores, sums, numbers;
  Barriers* barriers;
  __device__ Memory() {
    const Bytes shared = simt::dynamic_shared<unsigned char>(0, kBytes);
    k = shared + (kAlignment - simt::shared_address(&shared[0]) % kAlignment) % kAlignment;
    v = k + kStays, passing = v + kStays;
    scores = passing + kStages * 2 * kPasses, sums = scores + 2 * kScores, numbers = sums + kSums;
    barriers = reinterpret_cast<Barriers*>(&numbers[kStages * kNumbers]);
  }
  __device__ Bytes q(int stage) const { return passing + stage * 2 * kPasses; }
  __device__ Bytes grad_out(int stage) const { return q(stage) + kPasses; }
  __device__ Bytes numbers_of(int stage) const { return numbers + stage * kNumbers; }
  // ds^T of 64 tokens and 64 keys
  __device__ Bytes scores_of(int turn, int half, int block) const {
    return scores + turn * kScores + (half * 2 + block) * kBoxBytes;
  }
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

// What a block is at.
struct Work {
  Sequence sequence;
  TokenTiles tiles;
  int64_t number, block, kv_head, group;  // of the sequence; of the tile of keys in it
  int used, room;                         // keys that there are, and that there is room for
  bool causal;
  Work() = default;
  __device__ Work(const Params& p, const Params& keys, const Plan& plan, const Tile& tile, int64_t head,
                  int tokens)
      : sequence(sequence_of(p, tile.sequence)),
        number(tile.sequence),
        block(tile.block),
        kv_head(head),
        group(p.heads / p.kv_heads),
        causal(p.causal) {
    tiles = token_tiles(sequence, first_key(), tokens, causal);
    used = static_cast<int>(between(0, sequence.keys - first_key(), kTileRows));
    room = static_cast<int>(rows_in(sequence_of(keys, tile.sequence), plan, tile.block));
  }
  __device__ int64_t first_key() const { return block * kTileRows; }
  __device__ int64_t passes() const { return (tiles.end - tiles.begin) * group; }
  __device__ int64_t head(const Pass& pass) const { return kv_head * group + pass.member; }
  __device__ bool is_whole(const Pass& pass) const {
    return pass.tile >= tiles.whole_begin && pass.tile < tiles.whole_end;
  }
  __device__ int tokens_in(const Pass& pass, int tokens) const {
    return static_cast<int>(between(0, sequence.queries - pass.tile * tokens, tokens));
  }
  // Tokens from `first` of the sequence, `count` of them, that see key i of the tile.
  __device__ Columns seeing(int i, int64_t first, int count) const {
    const int64_t from = first_query_seeing(sequence, first_key() + i, causal);
    return {i < used ? static_cast<int>(between(0, from - first, count)) : count, count};
  }
  // Keys of the tile's block of 64 that a token of the sequence sees.
  __device__ Columns seen(int64_t token, int key_block) const {
    const int64_t first = first_key() + key_block * kBox;
    return {0, static_cast<int>(between(0, keys_seen(sequence, token, causal) - first, kBox))};
  }
  __device__ int64_t line(const Params& p, int i) const {
    return ((sequence.key_begin + first_key() + i) * p.kv_heads + kv_head) * p.dim;
  }
};

// ---- the warpgroup that serves ----

template <int kDim>
__device__ inline void bring_tokens(const CUtensorMap& queries, const CUtensorMap& grads, const Params& p,
                                    const RowNumbers* numbers, const Work& work, const Memory<kDim>& memory) {
  using Place = Memory<kDim>;
  Turn turn;
  for (int64_t i = 0; i < work.passes(); ++i, turn.next()) {
    const Pass pass = pass_at(work.tiles, work.group, i);
    const int64_t head = work.head(pass), token = work.sequence.query_begin + pass.tile * Place::kTokens;
    const int of_numbers = work.tokens_in(pass, Place::kTokens) * static_cast<int>(sizeof(RowNumbers));
    Barrier* const there = &memory.barriers->there[turn.stage];
    hopper::wait(&memory.barriers->read[turn.stage], turn.parity ^ 1);
    hopper::arrive_expecting(there, 2 * Place::kPasses + of_numbers);
    hopper::load_bytes(&memory.numbers_of(turn.stage)[0], numbers + head * p.tokens_q + token, of_numbers,
                       there);
#pragma unroll
    for (int box = 0; box < Place::kHalves * Place::kPanels; ++box) {
      const int inner = static_cast<int>(head * kDim) + box % Place::kPanels * kBox;
      const int outer = static_cast<int>(token) + box / Place::kPanels * kBox;
      hopper::load_box(&memory.q(turn.stage)[box * kBoxBytes], queries, inner, outer, there);
      hopper::load_box(&memory.grad_out(turn.stage)[box * kBoxBytes], grads, inner, outer, there);
    }
  }
}

// What a tile of keys is first to give is written: nobody has cleared the memory.
template <int kDim>
__device__ inline void add_sums(const Params& p, float* sums, uint32_t* turns, const Work& work,
                                const Memory<kDim>& memory) {
  using Place = Memory<kDim>;
  int parity = 0;
  for (int64_t i = 0; i < work.passes(); ++i, parity ^= 1) {
    const Pass pass = pass_at(work.tiles, work.group, i);
    const int64_t head = work.head(pass), token = work.sequence.query_begin + pass.tile * Place::kTokens;
    uint32_t* const turn = turns + turn_at(p, work.sequence, work.number, head, pass.tile);
    float* const to = sums + (head * p.tokens_q + token) * kDim;
    const int bytes = work.tokens_in(pass, Place::kTokens) * kDim * static_cast<int>(sizeof(float));
    hopper::wait(&memory.barriers->sums, parity);
    hopper::wait_turn(turn, static_cast<uint32_t>(work.block));
    if (work.block == 0) {
      hopper::store_bytes(to, &memory.sums[0], bytes);
    } else {
      hopper::add_floats(to, &memory.sums[0], bytes);
    }
    hopper::close_copies();
    hopper::wait_read();
    hopper::arrive_at(&memory.barriers->sums_added, 0);
    hopper::wait_written();
    hopper::pass_turn(turn);
  }
}

// ---- the warpgroups that multiply ----

// Keys or values of the tile, those behind the last used one 0, by all who multiply.
template <typename T, int kDim>
__device__ inline void load_keys(const Params& p, const void* from, const Work& work, Bytes to) {
  const int thread = static_cast<int>(threadIdx.x) - kWarpgroup;
  sm80::for_each_piece<kTileRows, kDim, kMultiplying>(thread, [&](int key, int d) {
    const bool there = key < work.used;
    const T* piece = static_cast<const T*>(from) + (there ? work.line(p, key) + d : 0);
    const int block = key / kBox * Memory<kDim>::kBlock;
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
  const uint32_t left = simt::shared_address(&a[0]), right = simt::shared_address(&b[0]);
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
#pragma unroll
  for (int k = 0; k < kBox / 16; ++k) {
    const uint32_t at = simt::shared_address(&b[0]) + hopper::operand_offset(true, 0, k * 16);
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
  using Place = Memory<kDim>;
  const Params& p;
  const Work& work;
  const Memory<kDim>& memory;
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
    return *reinterpret_cast<const RowNumbers*>(&of[column * static_cast<int>(sizeof(RowNumbers))]);
  }
  __device__ Columns seeing(int row, int64_t first, int count) const {
    return work.seeing(warpgroup() * kBox + strip() + row, first, count);
  }
  // What no token of [first, first + count) that sees the key has brought is 0.
  __device__ void hide(int64_t first, int count, float (&s)[8][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Columns sees = seeing(sm80::strip_row(half), first, count);
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
#pragma unroll
    for (int k = 0; k < kBox / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int place = sm80::place_of<kBox>(strip() + sm80::strip_row(i % 2), 16 * k + 8 * (i / 2));
        *reinterpret_cast<uint32_t*>(&to[place + 2 * sm80::strip_column()]) = a[k][i];
      }
    }
  }

  // Whether anything of what hides is not finite: then grad_out's is added to dv where it is seen, and both
  // operands are cleared of it.
  __device__ void clear_tokens(const uint32_t (&weights)[kBox / 16][4], Bytes q, Bytes grad_out,
                               int64_t first, int count) {
    hopper::wait_products<0>();  // they have read what is cleared
    const bool found = sm80::has_unfinite<T, kDim, kMultiplying>(q, multiplying()) ||
                       sm80::has_unfinite<T, kDim, kMultiplying>(grad_out, multiplying());
    if (!hopper::meet_or(kAllMeet, kMultiplying, found)) return;
    uint32_t pairs[1][8][2];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) pairs[0][j][half] = weights[j / 2][j % 2 * 2 + half];
    }
    sm80::add_unfinite<T, kDim, 1>(pairs, grad_out, [&](int row) { return seeing(row, first, count); }, dv);
    hopper::meet(kAllMeet, kMultiplying);
    sm80::clear_unfinite<T, kDim, kMultiplying>(q, multiplying());
    sm80::clear_unfinite<T, kDim, kMultiplying>(grad_out, multiplying());
    hopper::fence_shared();
    hopper::meet(kAllMeet, kMultiplying);
  }

  // 64 tokens: dk and dv, and ds^T into shared memory. Their last product is not awaited.
  __device__ void differentiate_tokens(const Pass& pass, int half, int stage, int turn) {
    const Bytes q = memory.q(stage) + half * Place::kBlock,
                grad_out = memory.grad_out(stage) + half * Place::kBlock,
                numbers = memory.numbers_of(stage) + half * kBox * static_cast<int>(sizeof(RowNumbers));
    const int64_t first = pass.tile * Place::kTokens + half * kBox;
    const int count = static_cast<int>(between(0, work.sequence.queries - first, kBox));
    const bool whole = work.is_whole(pass);
    float s[8][4] = {}, ds[8][4] = {};
    hopper::settle(s), hopper::settle(ds);
    hopper::begin_products();
    ask_scores<T, kDim>(memory.k + warpgroup() * Place::kBlock, q, s);
    ask_scores<T, kDim>(memory.v + warpgroup() * Place::kBlock, grad_out, ds);
    hopper::wait_products<1>();
    hopper::settle(s);
    weigh(numbers, s);
    if (!whole) hide(first, count, s);
    uint32_t weights[kBox / 16][4], gradients[kBox / 16][4];
    round_operand<T>(s, weights);
    if (!whole) clear_tokens(weights, q, grad_out, first, count);
    hopper::settle(dv[0]);
    hopper::begin_products();
    ask_sums<T, kDim>(weights, grad_out, dv[0]);
    hopper::wait_products<1>();
    hopper::settle(ds);
    differentiate(numbers, s, ds);
    if (!whole) hide(first, count, ds);
    round_operand<T>(ds, gradients);
    store_scores(gradients, memory.scores_of(turn, half, warpgroup()));
    hopper::settle(dk[0]);
    hopper::begin_products();
    ask_sums<T, kDim>(gradients, q, dk[0]);
    hopper::wait_products<1>();
    hopper::keep(weights);
    hopper::wait_products<0>();
    hopper::keep(gradients);
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
      const Bytes left = memory.scores_of(turn, rows_half(), key / kBox),
                  right = memory.k + key / kBox * Place::kBlock + panel() * kBoxBytes;
      hopper::multiply_transposed(dq, hopper::descriptor(simt::shared_address(&left[0]) + within),
                                  hopper::descriptor(simt::shared_address(&right[0]) + within), T{});
    }
    hopper::close_products();
  }
  // Where keys hide that are not finite: whoever sees one has a gradient of NaN there, 0 or NaN times it.
  // For this product they are 0, then they are brought anew.
  __device__ void ask_queries_finite(const Pass& pass, int turn, float (&dq)[1][8][4]) {
    const int64_t first = pass.tile * Place::kTokens + rows_half() * kBox + strip();
    constexpr sm80::Weights<1> kNone = {};
    for (int block = 0; block < 2; ++block) {
      sm80::add_unfinite<T, kBox, 1>(
          kNone, memory.k + block * Place::kBlock + panel() * kBoxBytes,
          [&](int row) { return work.seen(first + row, block); }, dq);
    }
    hopper::meet(kAllMeet, kMultiplying);
    for (int block = 0; block < 2; ++block)
      sm80::clear_unfinite<T, kDim, kMultiplying>(memory.k + block * Place::kBlock, multiplying());
    hopper::fence_shared();
    hopper::meet(kAllMeet, kMultiplying);
    ask_queries(turn, dq[0]);
    hopper::wait_products<0>();
    hopper::meet(kAllMeet, kMultiplying);
    load_keys<T, kDim>(p, p.k, work, memory.k);
  }
  __device__ void give_queries(const Pass& pass, const float (&dq)[8][4], int parity) const {
    const int64_t token = work.sequence.query_begin + pass.tile * Place::kTokens;
    hopper::wait(&memory.barriers->sums_added, parity ^ 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = rows_half() * kBox + strip() + sm80::strip_row(half);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int number = panel() * kBox + 8 * j + sm80::strip_column();
        const int piece = place_of_sum(token + row, number / 4);
        *reinterpret_cast<float2*>(&memory.sums[((row * kDim + piece * 4) + number % 4) * 4]) =
            make_float2(dq[j][2 * half], dq[j][2 * half + 1]);
      }
    }
    hopper::fence_shared();
    __syncwarp();
    release(&memory.barriers->sums);
  }

  __device__ void pass_all() {
    Turn turn;
    for (int64_t i = 0; i < work.passes(); ++i, turn.next()) {
      const Pass pass = pass_at(work.tiles, work.group, i);
      const int of_scores = static_cast<int>(i % 2);
      hopper::wait(&memory.barriers->there[turn.stage], turn.parity);
#pragma unroll 1
      for (int half = 0; half < Place::kHalves; ++half)
        differentiate_tokens(pass, half, turn.stage, of_scores);
      __syncwarp();
      release(&memory.barriers->read[turn.stage]);
      hopper::fence_shared();
      hopper::meet(kAllMeet, kMultiplying);
      float dq[1][8][4] = {};
      if (keys_unfinite && !work.is_whole(pass)) {
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
        [&](int i) { return first + i < work.used; }, [&](int i) { return work.line(p, first + i); });
  }
};

template <typename T, int kDim>
__device__ inline void multiply(const Params& p, const Gradients& g, const Work& work,
                                const Memory<kDim>& memory) {
  using Place = Memory<kDim>;
  using Own = Hands<T, kDim>;
  load_keys<T, kDim>(p, p.k, work, memory.k);
  load_keys<T, kDim>(p, p.v, work, memory.v);
  bool found = false;
  for (int block = 0; block < 2; ++block)
    found |= sm80::has_unfinite<T, kDim, kMultiplying>(memory.k + block * Place::kBlock, Own::multiplying());
  const bool keys_unfinite = hopper::meet_or(kAllMeet, kMultiplying, found && p.causal);
  Own own{p, work, memory, static_cast<float>(p.scale * kLog2E), keys_unfinite};
  own.pass_all();
  hopper::meet(kAllMeet, kMultiplying);  // all have read keys and values
  own.write(own.dk, static_cast<float>(p.scale), memory.k, g.grad_k);
  own.write(own.dv, 1.0f, memory.v, g.grad_v);
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    differentiate(const __grid_constant__ CUtensorMap queries, const __grid_constant__ CUtensorMap grads,
                  const __grid_constant__ Params p, const __grid_constant__ Gradients g,
                  const __grid_constant__ Params keys, const __grid_constant__ Plan plan,
                  const RowNumbers* const numbers, float* const sums, uint32_t* const ticket,
                  const Tile* const order) {
  const Memory<kDim> memory;
  EARNEST_SHARED(Work, work, 1);
  if (threadIdx.x == 0) {
    const int64_t drawn = atomicAdd(ticket, 1u), slot = drawn / p.kv_heads;
    const Tile tile = order != nullptr ? order[slot] : key_tile_of(keys, plan, slot);
    work[0].number = -1;
    if (tile.sequence >= 0)
      work[0] = Work(p, keys, plan, tile, drawn % p.kv_heads, Memory<kDim>::kTokens);
    for (int i = 0; i < kStages; ++i) {
      hopper::init(&memory.barriers->there[i], 1);
      hopper::init(&memory.barriers->read[i], kMultiplyingWarps);
    }
    hopper::init(&memory.barriers->sums, kMultiplyingWarps);
    hopper::init(&memory.barriers->sums_added, 1);
    hopper::fence_init();
    hopper::fence_shared();
  }
  __syncthreads();
  if (work[0].number < 0) return;
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
      const float4 sum = *reinterpret_cast<const float4*>(sums + (head * p.tokens_q + token) * kDim + piece * 4);
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
  CUtensorMap queries, grads;
  const int64_t width = p.heads * kDim;
  if (Status status = hopper::tensor_map(kOp, p.q, width, p.tokens_q, width, &queries); !status.ok())
    return status;
  if (Status status = hopper::tensor_map(kOp, g.grad_out, width, p.tokens_q, width, &grads); !status.ok())
    return status;
  return simt::launch({kOp, "differentiate"}, differentiate<T, kDim>,
                      dim3(static_cast<unsigned>(plan.keys.slots * p.kv_heads)), dim3(kThreads),
                      Memory<kDim>::kBytes, p.stream, queries, grads, p, g, with_keys_as_rows(p), plan.keys,
                      numbers, sums, ticket, order);
}

template <typename T, int kDim>
Status launch(const Params& p, const Gradients& g, const BackwardPlan& plan, const RowNumbers* numbers,
              const Tile* order) {
  auto* const workspace = static_cast<char*>(p.workspace);
  auto* const sums = reinterpret_cast<float*>(workspace + plan.turns.sums);
  auto* const ticket = reinterpret_cast<uint32_t*>(workspace + plan.turns.ticket);
  if (plan.keys.slots > 0) {
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
