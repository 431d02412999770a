// SPDX-License-Identifier: Apache-2.0
// Path sm80, backward: in two kernels of one form a block of four warps takes a tile of one side of the
// matrix of scores, rows or keys, which stays in shared memory, and the tiles of the other side pass by it.
//
//              stays          passes         sums, in registers
//   rows:      q, grad_out    k, v           dq += ds k
//   keys:      k, v           q, grad_out    dv += p^T grad_out, dk += ds^T q
//
// Both compute scores and their gradients anew, which costs seven products instead of five, so that nobody
// adds to memory that another block adds to. A warp's scores, transposed or not, are laid out in registers as
// the left operand of the next product wants them. Of what passes, the first operand has two places in shared
// memory and the second, which is on its way while scores are multiplied, has one.
#include "kernels/attention/attention_paths.h"
#include "kernels/attention/attention_result.h"
#include "kernels/attention/attention_unfinite.h"

namespace earnest::attention::gpu::sm80 {
namespace {

constexpr double kLog2E = 1.4426950408889634;

__device__ inline int warp() { return static_cast<int>(threadIdx.x) / simt::kWarpSize; }

template <int kDim, int S, bool kKeysStay>
struct Memory {  // shared, in bytes; first operands are q or k, second ones grad_out or v
  static constexpr int kStaying = kWarps * S * kStripRows;
  static constexpr int kStays = kStaying * kDim * 2, kPasses = kKeys * kDim * 2, kOfRow = sizeof(RowNumbers),
                       kNumbers = kKeysStay ? kKeys * kOfRow : 0;
  static constexpr size_t kBytes = 2 * kStays + 3 * kPasses + kNumbers;
  Bytes staying_first, staying_second, passing_first, passing_second, numbers;
  __device__ Memory()
      : staying_first(simt::dynamic_shared<unsigned char>(0, kStays)),
        staying_second(simt::dynamic_shared<unsigned char>(kStays, kStays)),
        passing_first(simt::dynamic_shared<unsigned char>(2 * kStays, 2 * kPasses)),
        passing_second(simt::dynamic_shared<unsigned char>(2 * kStays + 2 * kPasses, kPasses)),
        numbers(simt::dynamic_shared<unsigned char>(2 * kStays + 3 * kPasses, kNumbers)) {}
  __device__ Bytes first(int tile) const { return passing_first + tile % 2 * kPasses; }
};

// ---- the two sides ----
// Of a side are asked: tiles [begin, end) that pass by, and whether one is seen whole; loads of what stays
// and what passes; the numbers of a score's row; and seen(i, tile), the columns of that tile which the i-th
// that stays sees, or is seen by. What it knows lies in shared memory: sums leave few registers.

struct RowsOfBlock {
  Rows rows;
  int begin, end, whole_end;
  RowsOfBlock() = default;
  __device__ RowsOfBlock(const Rows& of_tile) : rows(of_tile), begin(0) {
    const KeyTiles tiles = rows.tiles();
    end = static_cast<int>(tiles.all), whole_end = static_cast<int>(tiles.whole);
  }
};

template <typename T, int kDim, int S>
struct RowsStay {
  static constexpr bool kKeysStay = false;
  using Place = Memory<kDim, S, false>;
  const Params& p;
  const Gradients& g;
  const RowsOfBlock& of;
  RowNumbers of_lane[S][2];  // of the lane's rows

  __device__ RowsStay(const Params& params, const Gradients& gradients, const RowsOfBlock& of_block)
      : p(params), g(gradients), of(of_block) {}
  __device__ bool is_whole(int tile) const { return tile < of.whole_end; }
  __device__ Columns seen(int i, int tile) const { return {0, of.rows.seen(i) - tile * kKeys}; }
  __device__ int64_t line(int i) const { return of.rows.line(i) * kDim; }

  __device__ void load_staying(const Place& memory, const RowNumbers* numbers) {
    const auto at = [&](int i) { return line(i); };
    load_rows<Place::kStaying, kDim>(memory.staying_first, static_cast<const T*>(p.q), of.rows.count, at);
    load_rows<Place::kStaying, kDim>(memory.staying_second, static_cast<const T*>(g.grad_out), of.rows.count,
                                     at);
    const int64_t first = numbers_at(p, of.rows.sequence, of.rows.kv_head,
                                     of.rows.first_token * of.rows.group + of.rows.first_member);
#pragma unroll
    for (int strip = 0; strip < S; ++strip) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = (warp() * S + strip) * kStripRows + strip_row(half);
        of_lane[strip][half] = i < of.rows.count ? numbers[first + i] : RowNumbers{};
      }
    }
  }
  __device__ void load_keys(const void* from, Bytes to, int tile) const {
    const Sequence& sequence = of.rows.sequence;
    const int64_t pitch = p.kv_heads * kDim, first = int64_t{tile} * kKeys;  // from key to key
    const T* const at =
        static_cast<const T*>(from) + (sequence.key_begin + first) * pitch + of.rows.kv_head * kDim;
    load_rows<kKeys, kDim>(to, at, static_cast<int>(between(0, sequence.keys - first, kKeys)),
                           [&](int key) { return key * pitch; });
  }
  __device__ void load_first(const Place& memory, int tile) const {
    load_keys(p.k, memory.first(tile), tile);
  }
  __device__ void load_second(const Place& memory, int tile, const RowNumbers*) const {
    load_keys(p.v, memory.passing_second, tile);
  }
  __device__ RowNumbers numbers(const Place&, int strip, int half, int /*column*/) const {
    return of_lane[strip][half];
  }
};

struct KeysOfBlock {
  Sequence sequence;
  int64_t first, kv_head;
  unsigned group, rows;  // of the sequence; there are fewer than 2^31
  int used, room;        // keys that there are, and that there is room for
  int begin, end, whole_begin, whole_end;
  bool causal;
  KeysOfBlock() = default;
  __device__ KeysOfBlock(const Params& p, const Params& keys, const Plan& plan, const Tile& tile,
                         int64_t head)
      : sequence(sequence_of(p, tile.sequence)),
        first(tile.block * plan.tile_rows),
        kv_head(head),
        causal(p.causal) {
    const int64_t of_head = p.heads / p.kv_heads;
    group = static_cast<unsigned>(of_head), rows = static_cast<unsigned>(sequence.queries * of_head);
    used = static_cast<int>(between(0, sequence.keys - first, plan.tile_rows));
    room = static_cast<int>(rows_in(sequence_of(keys, tile.sequence), plan, tile.block));
    const RowTiles tiles = row_tiles(sequence, first, plan.tile_rows, of_head, causal);
    begin = static_cast<int>(tiles.begin), end = static_cast<int>(tiles.end);
    whole_begin = static_cast<int>(tiles.whole_begin), whole_end = static_cast<int>(tiles.whole_end);
  }
};

template <typename T, int kDim, int S>
struct KeysStay {
  static constexpr bool kKeysStay = true;
  using Place = Memory<kDim, S, true>;
  const Params& p;
  const Gradients& g;
  const KeysOfBlock& of;

  __device__ KeysStay(const Params& params, const Gradients& gradients, const KeysOfBlock& of_block)
      : p(params), g(gradients), of(of_block) {}
  __device__ bool is_whole(int tile) const { return tile >= of.whole_begin && tile < of.whole_end; }
  __device__ int rows_of(int tile) const {
    return static_cast<int>(between(0, int64_t{of.rows} - int64_t{tile} * kKeys, kKeys));
  }
  __device__ Columns seen(int i, int tile) const {
    const int64_t from = first_row_seeing(of.sequence, of.first + i, of.group, of.causal);
    return {static_cast<int>(between(0, from - int64_t{tile} * kKeys, kKeys)), rows_of(tile)};
  }
  __device__ int64_t line(int i) const {
    return ((of.sequence.key_begin + of.first + i) * p.kv_heads + of.kv_head) * kDim;
  }

  __device__ void load_staying(const Place& memory, const RowNumbers*) const {
    const auto at = [&](int i) { return line(i); };
    load_rows<Place::kStaying, kDim>(memory.staying_first, static_cast<const T*>(p.k), of.used, at);
    load_rows<Place::kStaying, kDim>(memory.staying_second, static_cast<const T*>(p.v), of.used, at);
  }
  __device__ void load_queries(const void* from, Bytes to, int tile) const {
    load_rows<kKeys, kDim>(to, static_cast<const T*>(from), rows_of(tile), [&](int i) {
      const unsigned row = static_cast<unsigned>(tile) * kKeys + static_cast<unsigned>(i);
      const int64_t token = of.sequence.query_begin + row / of.group;
      return (token * p.heads + of.kv_head * of.group + row % of.group) * kDim;
    });
  }
  __device__ void load_first(const Place& memory, int tile) const {
    load_queries(p.q, memory.first(tile), tile);
  }
  __device__ void load_second(const Place& memory, int tile, const RowNumbers* numbers) const {
    load_queries(g.grad_out, memory.passing_second, tile);
    const int i = thread();
    if (i >= kKeys) return;
    const bool there = i < rows_of(tile);
    const int64_t at = numbers_at(p, of.sequence, of.kv_head, int64_t{tile} * kKeys + i);
    simt::copy_async_16(&memory.numbers[i * Place::kOfRow], numbers + (there ? at : 0), there ? 16 : 0);
  }
  __device__ RowNumbers numbers(const Place& memory, int /*strip*/, int /*half*/, int column) const {
    return *reinterpret_cast<const RowNumbers*>(&memory.numbers[column * Place::kOfRow]);
  }
};

// ---- what passes ----

// Scores become weights, and the gradients of weights those of scores (before the scale); of what is not seen
// both are 0, whatever they were. The first column is the tile's `column`-th.
template <int S, int J, typename Side>
__device__ inline void differentiate(const Side& side, const typename Side::Place& memory, float factor,
                                     int tile, int column, Strips<S, J>& p, Strips<S, J>& ds) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int strip = 0; strip < S; ++strip) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const RowNumbers row = side.numbers(memory, strip, half, column + 8 * j + strip_column() + i);
          float &score = p[strip][j][2 * half + i], &grad = ds[strip][j][2 * half + i];
          score = exp2_of(fmaf(score - row.base, factor, -row.shift));
          grad = score * (grad - row.delta);
        }
      }
    }
  }
  if (side.is_whole(tile)) return;
#pragma unroll
  for (int strip = 0; strip < S; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Columns seen = side.seen(warp() * S * kStripRows + strip * kStripRows + strip_row(half), tile);
#pragma unroll
      for (int j = 0; j < J; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = column + 8 * j + strip_column() + i;
          if (at >= seen.begin && at < seen.end) continue;
          p[strip][j][2 * half + i] = 0;
          ds[strip][j][2 * half + i] = 0;
        }
      }
    }
  }
}

// All that passes by what stays: `of_first` += ds times first operands, and with kKeysStay `of_second` += p
// times second ones.
template <typename T, int kDim, int S, typename Side>
__device__ inline void pass_all(Side& side, const typename Side::Place& memory, const RowNumbers* numbers,
                                float factor, Strips<S, kDim / 8>& of_first, Strips<S, kDim / 8>& of_second) {
  constexpr int kStaying = Side::Place::kStaying, kColumns = kKeys / S, J = kColumns / 8;
  if (side.of.begin >= side.of.end) return;
  side.load_staying(memory, numbers);
  side.load_first(memory, side.of.begin);
  simt::copy_async_commit();
  for (int tile = side.of.begin; tile < side.of.end; ++tile) {
    const Bytes first = memory.first(tile), second = memory.passing_second;
    simt::copy_async_wait<0>();
    __syncthreads();  // the first operand is there, and everybody has read the last tile's
    side.load_second(memory, tile, numbers);
    simt::copy_async_commit();
    if (tile + 1 < side.of.end) side.load_first(memory, tile + 1);
    simt::copy_async_commit();  // of nothing too, so that the second operand is the last group but one
    bool unfinite = false;
#pragma unroll 1
    for (int column = 0; column < kKeys; column += kColumns) {
      const int row = afresh(warp() * S * kStripRows);
      const Bytes first_part = first + column * kLineBytes, second_part = second + column * kLineBytes;
      Strips<S, J> p = {}, ds = {};
      add_scores<T, kStaying, kDim, S>(memory.staying_first, first_part, row, p);
      if (column == 0) {
        simt::copy_async_wait<1>();
        const bool hides = side.p.causal && !side.is_whole(tile);
        unfinite = __syncthreads_or(hides && (has_unfinite<T, kDim>(first, thread()) ||
                                              (Side::kKeysStay && has_unfinite<T, kDim>(second, thread()))));
      }
      add_scores<T, kStaying, kDim, S>(memory.staying_second, second_part, row, ds);
      differentiate<S, J>(side, memory, factor, tile, column, p, ds);
      const auto seen = [&](int i) {
        const Columns of_tile = side.seen(row + i, tile);
        return Columns{of_tile.begin - column, of_tile.end - column};
      };
      Weights<S, J> weights, gradients;
      if constexpr (Side::kKeysStay) round_weights<T, S>(p, weights);
      round_weights<T, S>(ds, gradients);
      if constexpr (Side::kKeysStay) {
        if (unfinite) {
          add_unfinite<T, kDim, S>(weights, second_part, seen, of_second);
          add_values<T, kDim, S, true>(weights, second_part, of_second);
        } else {
          add_values<T, kDim, S>(weights, second_part, of_second);
        }
      }
      if (unfinite) {
        // Whoever sees a key that is not finite has a gradient of NaN there: 0 or NaN times it. A row of q
        // that is not has made NaN of the gradients of all its scores.
        const Weights<S, J> none = {};
        if (!Side::kKeysStay) add_unfinite<T, kDim, S>(none, first_part, seen, of_first);
        add_values<T, kDim, S, true>(gradients, first_part, of_first);
      } else {
        add_values<T, kDim, S>(gradients, first_part, of_first);
      }
    }
  }
}

template <typename T, int kDim, int S>
__global__ void __launch_bounds__(kThreads, 2)
    differentiate_rows(const Params p, const Gradients g, const Plan plan, const RowNumbers* const numbers,
                       const Tile* const order) {
  const Memory<kDim, S, false> memory;
  EARNEST_SHARED(RowsOfBlock, of_block, 1);
  const int64_t slot = blockIdx.x / p.kv_heads;
  const Tile tile = order != nullptr ? order[slot] : tile_of(p, plan, slot);
  if (tile.sequence < 0) return;
  if (threadIdx.x == 0) of_block[0] = RowsOfBlock(Rows(p, plan, tile, blockIdx.x % p.kv_heads));
  __syncthreads();
  RowsStay<T, kDim, S> side(p, g, of_block[0]);
  Strips<S, kDim / 8> grad_q = {}, none;
  pass_all<T, kDim, S>(side, memory, numbers, static_cast<float>(p.scale * kLog2E), grad_q, none);
  write_sums<T, kWarps * S * kStripRows, kDim, S>(
      grad_q, static_cast<float>(p.scale), memory.staying_first, warp() * S * kStripRows, side.of.rows.count,
      static_cast<T*>(g.grad_q), [](int) { return true; }, [&](int i) { return side.line(i); });
}

template <typename T, int kDim, int S>
__global__ void __launch_bounds__(kThreads, 2)
    differentiate_keys(const Params p, const Gradients g, const Params keys, const Plan plan,
                       const RowNumbers* const numbers, const Tile* const order) {
  const Memory<kDim, S, true> memory;
  EARNEST_SHARED(KeysOfBlock, of_block, 1);
  const int64_t slot = blockIdx.x / p.kv_heads;
  const Tile tile = order != nullptr ? order[slot] : key_tile_of(keys, plan, slot);
  if (tile.sequence < 0) return;
  if (threadIdx.x == 0) of_block[0] = KeysOfBlock(p, keys, plan, tile, blockIdx.x % p.kv_heads);
  __syncthreads();
  KeysStay<T, kDim, S> side(p, g, of_block[0]);
  Strips<S, kDim / 8> grad_k = {}, grad_v = {};
  pass_all<T, kDim, S>(side, memory, numbers, static_cast<float>(p.scale * kLog2E), grad_k, grad_v);
  constexpr int kStaying = kWarps * S * kStripRows;
  const auto write = [&](const Strips<S, kDim / 8>& sums, float factor, Bytes through, void* to) {
    write_sums<T, kStaying, kDim, S>(
        sums, factor, through, warp() * S * kStripRows, side.of.room, static_cast<T*>(to),
        [&](int i) { return i < side.of.used; }, [&](int i) { return side.line(i); });
  };
  write(grad_k, static_cast<float>(p.scale), memory.staying_first, g.grad_k);
  write(grad_v, 1.0f, memory.staying_second, g.grad_v);
}

unsigned blocks_for(const Params& p, const Plan& plan) {
  return static_cast<unsigned>(plan.slots * p.kv_heads);
}

template <typename T, int kDim, int S>
Status launch_rows(const Params& p, const Gradients& g, const Plan& plan, const RowNumbers* numbers,
                   const Tile* order) {
  return simt::launch({kOp, "differentiate_rows"}, differentiate_rows<T, kDim, S>, dim3(blocks_for(p, plan)),
                      dim3(kThreads), Memory<kDim, S, false>::kBytes, p.stream, p, g, plan, numbers, order);
}

template <typename T, int kDim>
Status launch(const Params& p, const Gradients& g, const BackwardPlan& plan, const RowNumbers* numbers,
              const Tile* row_order, const Tile* key_order) {
  constexpr int kKeyStrips = keys_of_tile(kDim) / (kWarps * kStripRows);
  if (plan.keys.slots > 0) {
    Status status =
        simt::launch({kOp, "differentiate_keys"}, differentiate_keys<T, kDim, kKeyStrips>,
                     dim3(blocks_for(p, plan.keys)), dim3(kThreads), Memory<kDim, kKeyStrips, true>::kBytes,
                     p.stream, p, g, with_keys_as_rows(p), plan.keys, numbers, key_order);
    if (!status.ok()) return status;
  }
  if (plan.rows.slots == 0) return {};
  if (plan.rows.tile_rows == kFewTileRows)
    return launch_rows<T, kDim, 1>(p, g, plan.rows, numbers, row_order);
  return launch_rows<T, kDim, 2>(p, g, plan.rows, numbers, row_order);
}

template <typename T>
Status launch(const Params& p, const Gradients& g, const BackwardPlan& plan, const RowNumbers* numbers,
              const Tile* row_order, const Tile* key_order) {
  return (p.dim == 64 ? launch<T, 64> : launch<T, 128>)(p, g, plan, numbers, row_order, key_order);
}

}  // namespace

Status backward(const Params& p, const Gradients& g, const BackwardPlan& plan, const RowNumbers* numbers,
                const Tile* row_order, const Tile* key_order) {
  return (p.type == Type::kFloat16 ? launch<Float16> : launch<BFloat16>)(p, g, plan, numbers, row_order,
                                                                         key_order);
}

}  // namespace earnest::attention::gpu::sm80
