// SPDX-License-Identifier: Apache-2.0
// Attention over pages on a GPU. Blocks as many as the chip holds take pieces of all sequences in turn; what
// pieces leave behind a second kernel joins, in their order. It is written with mma.sync for every chip: at
// 7 rows a key its products are an eighth of what the bytes take (README.md). `Number`: type of queries and
// results; `Stored`: of the cache, the same or Float8.
#include <algorithm>
#include <bit>

#include "kernels/attention/paged_job.h"
#include "kernels/attention/paged_tile.h"
#include "kernels/common/cuda.h"

namespace earnest::attention::paged {
namespace {

constexpr const char* kOp = "paged_attention";
using Pages = simt::Shared<int32_t>;

// One block's work: a piece of a sequence's keys, a key head, and 64 of its rows.
struct Unit {
  Piece piece;
  int kv_head, first_row;
};

// What a block is at, in shared memory: there are no registers for it while tiles are multiplied.
struct Work {
  int number;  // of the unit, among those of all sequences
  Walk walk;
  Unit unit;
  bool found, good_pages;
};

// Where a row of the unit lies. Rows of the block from `rows` on do not exist.
struct Rows {
  int begin, heads, kv_head, group, first, rows;
  __device__ bool has(int row) const { return first + row < rows; }
  __device__ int query(int row) const { return (first + row) / group; }
  __device__ int head(int row) const { return kv_head * group + (first + row) % group; }
  __device__ int64_t row_of_q(int row) const { return int64_t{begin + query(row)} * heads + head(row); }
};

__device__ Rows rows_of(const Job& job, const Unit& unit, const Sequence& s) {
  return {s.begin, job.heads, unit.kv_head, job.group, unit.first_row, s.queries * job.group};
}

template <typename Number, int kDim>
__device__ void load_queries(const Job& job, const Rows& rows, const Bytes& to) {
  constexpr int kChunks = kDim / 8;
  const int count = static_cast<int>(blockDim.x) / kThreadsOfRowTile * kRowTile * kChunks;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool there = rows.has(row);
    const int64_t from = there ? rows.row_of_q(row) * kDim + chunk * 8 : 0;
    simt::copy_async_16(&to[place_of<kChunks>(row, chunk)], static_cast<const Number*>(job.q) + from,
                        there ? 16 : 0);
  }
}

// The tile whose first key is key `first` of the piece, of which `keys` exist; `pages`: those of the piece.
// What does not exist becomes 0.
template <typename Stored, int kDim>
__device__ void load_tile(const Job& job, int kv_head, const Pages& pages, int first, int keys,
                          const Bytes& to) {
  constexpr int kSize = sizeof(Stored), kChunks = kDim * kSize / 16;
  const auto *k = static_cast<const Stored*>(job.k), *v = static_cast<const Stored*>(job.v);
  // Further keys of a thread lie a multiple of 8 behind, where chunks have the same places.
  static_assert(kThreadsOfRowTile / kChunks % 8 == 0);
  const int thread = static_cast<int>(threadIdx.x), chunk = thread % kChunks;
  const int further = static_cast<int>(blockDim.x) / kChunks, in_page = (1 << job.page_shift) - 1;
  int at = place_of<kChunks>(thread / kChunks, chunk);
  for (int key = thread / kChunks; key < kTileKeys; key += further, at += further * kChunks * 16) {
    const int of_piece = first + key;
    const bool there = of_piece < keys;
    const int64_t page = there ? pages[of_piece >> job.page_shift] : 0;
    const int64_t row = ((page * job.kv_heads + kv_head) << job.page_shift) + (of_piece & in_page);
    const int64_t from = there ? row * kDim + chunk * (16 / kSize) : 0;
    simt::copy_async_16(&to[at], k + from, there ? 16 : 0);
    simt::copy_async_16(&to[tile_bytes(kDim, kSize) + at], v + from, there ? 16 : 0);
  }
}

// Until a tile is there, behind which one less than all other places are being filled.
__device__ void wait_for_tile(int stages) {
  static_assert(kLeastStages == 2 && kMostStages == 4);
  if (stages == 2) {
    simt::copy_async_wait<0>();
  } else if (stages == 3) {
    simt::copy_async_wait<1>();
  } else {
    simt::copy_async_wait<2>();
  }
}

// sums += this piece's, over all its tiles: others are on their way while one is multiplied.
template <typename Number, typename Stored, int kDim>
__device__ void attend_tiles(const Job& job, const Unit& unit, const Rows& rows, int length,
                             const Pages& pages, float scale_log2, RowSums<kDim>& sums) {
  constexpr int kSize = sizeof(Stored), kTileBytes = tile_bytes(kDim, kSize);
  const int row_tiles = static_cast<int>(blockDim.x) / kThreadsOfRowTile;
  const int keys = keys_of_piece(unit.piece.index, length, job.piece_shift);
  const int steps = (keys + kTileKeys - 1) / kTileKeys, stages = job.stages, kv_head = unit.kv_head;
  const auto shared = simt::dynamic_shared<unsigned char>(
      0, static_cast<size_t>(shared_bytes(kDim, row_tiles, kSize, stages)));
  const Bytes queries = shared + queries_offset(kDim, kSize, stages);
  const auto tile_at = [&](int place) { return shared + place * 2 * kTileBytes; };
  const auto load = [&](int step, int place) {
    if (step < steps) load_tile<Stored, kDim>(job, kv_head, pages, step * kTileKeys, keys, tile_at(place));
    simt::copy_async_commit();  // empty groups too: that many are waited for
  };
  // The last query sees all keys, each one before it one key less.
  int visible[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int behind = rows.rows / rows.group - 1 - rows.query(row_of_lane(half));
    const int seen = length - behind - (unit.piece.index << job.piece_shift);
    visible[half] = seen < 0 ? 0 : seen < keys ? seen : keys;
  }
  load_queries<Number, kDim>(job, rows, queries);
  for (int step = 0; step < stages - 1; ++step) load(step, step);
  for (int step = 0, place = 0; step < steps; ++step, place = place + 1 == stages ? 0 : place + 1) {
    wait_for_tile(stages);
    __syncthreads();  // the tile is there, and everybody has read the one before it, whose place comes next
    load(step + stages - 1, (place == 0 ? stages : place) - 1);
    const Bytes tile = tile_at(place);
    attend_tile<Number, Stored>(queries, tile, tile + kTileBytes, visible, scale_log2, sums);
#pragma unroll
    for (int half = 0; half < 2; ++half) visible[half] -= kTileKeys;
  }
}

// What ends a row, here and in join_pieces: the same steps, so that a query has the same bits whether keys
// that it does not see make a second piece or not.
__device__ float inverse_of(float total) { return total == 0 ? 0.0f : 1 / total; }
__device__ float log_sum(float highest, float scale, float total) {
  return total == 0 ? kNothing : highest * scale + logf(total);
}

// Of a sequence of one piece the result; else what the piece leaves behind. Sequence and scales are looked up
// anew, for want of registers as well.
template <typename Number, typename Stored, int kDim>
__device__ void store(const Job& job, const Unit& unit, const RowSums<kDim>& sums) {
  const Piece& piece = unit.piece;
  const Sequence s = sequence_at(job, piece.sequence);
  const Rows rows = rows_of(job, unit, s);
  const bool only = pieces_of(s.length, job.piece_shift) == 1;
  Scales scales;
  scales_of(job, unit.kv_head, &scales);
  const bool first_of_row = lane_of_warp() % 4 == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of_lane(half);
    if (!rows.has(row)) continue;
    const float highest = sums.highest[half], total = sums.total[half];
    const float inverse = inverse_of(total);
    const int64_t part = part_row(piece.sequence, piece.index, rows.query(row), rows.head(row),
                                  job.most_pieces, job.queries, rows.heads);
    const int64_t at = only ? rows.row_of_q(row) : part;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      float2 pair = pair_of(sums, half, j, Stored{});
      pair = make_float2(pair.x * scales.value, pair.y * scales.value);
      const int64_t to = at * kDim + column_of(j, Stored{});
      if (only) {
        *reinterpret_cast<uint32_t*>(static_cast<Number*>(job.out) + to) =
            pack(pair.x * inverse, pair.y * inverse, Number{});
      } else {
        *reinterpret_cast<float2*>(job.part_outputs + to) = pair;
      }
    }
    if (!first_of_row) continue;
    if (!only) job.part_sums[at] = make_float2(highest, total);
    if (only && job.lse != nullptr) job.lse[at] = log_sum(highest, scales.score, total);
  }
}

template <typename Number, typename Stored, int kDim>
__device__ void attend(const Job& job, const Work& work, const Pages& pages) {
  const Unit& unit = work.unit;
  const Sequence s = sequence_at(job, unit.piece.sequence);
  const Rows rows = rows_of(job, unit, s);
  if (!rows.has(0)) return;
  RowSums<kDim> sums;
  set_empty(sums);
  Scales scales;
  if (!scales_of(job, unit.kv_head, &scales) || !work.good_pages || s.bad_length) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      sums.highest[half] = sums.total[half] = NAN;  // for all that comes of it
  } else if (s.length > 0) {
    attend_tiles<Number, Stored>(job, unit, rows, s.length, pages, scales.score_log2, sums);
    join_key_groups(scales.score_log2, sums);
  }
  if (key_group() == kKeyGroups - 1) store<Number, Stored>(job, unit, sums);
}

// The pages of a piece; false, and a record, if one of them cannot be. A warp.
__device__ bool load_pages(const Job& job, const Piece& piece, const Pages& pages) {
  const int keys = keys_of_piece(piece.index, sequence_at(job, piece.sequence).length, job.piece_shift);
  const int64_t first = int64_t{piece.index} << (job.piece_shift - job.page_shift);
  bool bad = false;
  for (int i = lane_of_warp(); i << job.page_shift < keys; i += 32) {
    const int32_t page = job.page_table[piece.sequence * job.table_pages + first + i];
    pages[i] = page;
    bad = bad || page < 0 || page >= job.pages;
  }
  if (bad) record(job, piece.sequence, faults::kPage);
  return !__any_sync(kFullWarp, bad);
}

// The first warp together: looks up the unit behind `work`, and its pages.
__device__ void find_unit(const Job& job, const Work& work, const Pages& pages, Work& next) {
  const int number = work.number + static_cast<int>(gridDim.x);
  const int of_piece = static_cast<int>(job.kv_heads) * job.slices;
  Walk walk = work.walk;
  Unit unit = {{0, 0}, number % of_piece / job.slices, number % job.slices * kMostRowTiles * kRowTile};
  const bool found = walk_to(job, number / of_piece, walk, &unit.piece);
  const bool good_pages = found && load_pages(job, unit.piece, pages);
  if (threadIdx.x == 0) next = {number, walk, unit, found, good_pages};
}

// The first warp looks up the next unit while others store what this one leaves: nobody needs its pages then.
template <typename Number, typename Stored, int kDim>
__global__ void __launch_bounds__(kMostThreads) attend_pieces(const Job job) {
  static_assert(2 * sizeof(Work) <= kWorkBytes);
  EARNEST_SHARED(Work, works, 2);
  const int row_tiles = static_cast<int>(blockDim.x) / kThreadsOfRowTile;
  const auto pages = simt::dynamic_shared<int32_t>(
      static_cast<size_t>(pages_offset(kDim, row_tiles, sizeof(Stored), job.stages)), kMostPiecePages);
  const bool looks_up = threadIdx.x < 32;
  if (threadIdx.x == 0) works[1].number = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x);
  if (threadIdx.x == 0) works[1].walk = {0, 0};
  if (looks_up) {
    __syncwarp();
    find_unit(job, works[1], pages, works[0]);
  }
  for (int turn = 0;; turn ^= 1) {
    __syncthreads();  // the unit is there, and everybody has done with the one before
    if (!works[turn].found) return;
    attend<Number, Stored, kDim>(job, works[turn], pages);
    if (looks_up) find_unit(job, works[turn], pages, works[turn ^ 1]);
  }
}

// A block joins the parts of one row.
template <typename Number, int kDim>
__global__ void __launch_bounds__(kJoinThreads) join_pieces(const Job job) {
  constexpr int kOfLane = kDim / 32;
  EARNEST_SHARED(float, highest_of, kJoinWarps);
  EARNEST_SHARED(float, total_of, kJoinWarps);
  EARNEST_SHARED(float, sums_of, kJoinWarps* kDim);
  const int row_of_grid = static_cast<int>(blockIdx.x), heads = job.heads, head = row_of_grid % heads;
  const int query = row_of_grid / heads % job.queries, n = row_of_grid / heads / job.queries;
  const int thread = static_cast<int>(threadIdx.x);
  const Sequence s = sequence_at(job, n);
  const int64_t pieces = pieces_of(s.length, job.piece_shift);
  if (query >= s.queries || pieces == 1) return;
  Scales scales;
  if (!scales_of(job, head / job.group, &scales)) scales.score = scales.score_log2 = NAN;
  const auto part = [&](int64_t piece) {
    return part_row(n, piece, query, head, job.most_pieces, job.queries, heads);
  };

  float highest = kNothing;
  for (int64_t piece = thread; piece < pieces; piece += kJoinThreads)
    highest = fmaxf(highest, job.part_sums[part(piece)].x);
  for (int step = 16; step >= 1; step /= 2)
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, step));
  if (thread % 32 == 0) highest_of[thread / 32] = highest;
  __syncthreads();
  for (int warp = 0; warp < kJoinWarps; ++warp) highest = fmaxf(highest, highest_of[warp]);

  float total = 0, sums[kOfLane] = {};
#pragma unroll 4
  for (int64_t piece = thread / 32; piece < pieces; piece += kJoinWarps) {
    const float2 of_part = job.part_sums[part(piece)];
    const float weight = weight_of(of_part.x, highest, scales.score_log2);
    const float* from = job.part_outputs + part(piece) * kDim + thread % 32;
    total += of_part.y * weight;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) sums[i] += from[32 * i] * weight;
  }
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) sums_of[thread / 32 * kDim + 32 * i + thread % 32] = sums[i];
  if (thread % 32 == 0) total_of[thread / 32] = total;
  __syncthreads();
  if (thread >= kDim) return;

  float sum = 0;
  total = 0;
  for (int warp = 0; warp < kJoinWarps; ++warp) {
    sum += sums_of[warp * kDim + thread];
    total += total_of[warp];
  }
  const int64_t row = int64_t{s.begin + query} * heads + head;
  narrow(sum * inverse_of(total), &static_cast<Number*>(job.out)[row * kDim + thread]);
  if (job.lse != nullptr && thread == 0) job.lse[row] = log_sum(highest, scales.score, total);
}

size_t aligned(size_t address) { return (address + kAlignment - 1) / kAlignment * kAlignment; }

Job job_of(const Params& p, const Output& output, void* workspace) {
  Job job = {};
  job.q = p.q, job.k = p.k, job.v = p.v;
  job.out = output.out, job.lse = output.lse;
  job.page_table = p.page_table, job.lengths = p.lengths, job.cu_seqlens_q = p.cu_seqlens_q;
  job.sequences = p.sequences, job.tokens = p.tokens, job.kv_heads = p.kv_heads;
  job.pages = p.pages, job.table_pages = p.table_pages;
  job.heads = static_cast<int>(p.heads);
  job.group = static_cast<int>(p.heads / p.kv_heads), job.queries = static_cast<int>(p.most_queries);
  job.page_shift = std::countr_zero(static_cast<uint64_t>(p.page_size));
  job.slices = static_cast<int>(row_slices(p.most_queries * job.group));
  job.scale = static_cast<float>(p.scale);
  job.k_scale = p.cache == Cache::kFloat8 ? p.k_scale : nullptr;
  job.v_scale = p.cache == Cache::kFloat8 ? p.v_scale : nullptr;
  job.piece_shift = piece_shift(p.piece_keys);
  job.most_pieces = pieces_of(p.table_pages * p.page_size, job.piece_shift);
  job.fault = p.fault;
  const int64_t rows = part_rows(p.sequences, job.most_pieces, p.most_queries, p.heads);
  const size_t outputs = aligned(reinterpret_cast<uintptr_t>(workspace));
  job.part_outputs = reinterpret_cast<float*>(outputs);
  job.part_sums =
      reinterpret_cast<float2*>(aligned(outputs + static_cast<size_t>(rows * p.dim) * sizeof(float)));
  return job;
}

template <typename Number, typename Stored, int kDim>
Status run(const Params& p, Job job, const cuda::Properties& device) {
  const int tiles = row_tiles(p.most_queries * job.group);
  const int64_t units = p.sequences * job.most_pieces * job.kv_heads * job.slices;  // at the most
  job.stages = stages_of(p.stages, kDim, tiles, sizeof(Stored), blocks_of(units, device.multiprocessors),
                         device.shared_bytes);
  if (job.stages == 0) {
    return invalid_argument(
        kOp, "stages", "tiles that " + std::to_string(device.shared_bytes) + " bytes of shared memory hold",
        std::to_string(p.stages));
  }
  const int64_t most =
      device.multiprocessors * resident_blocks(kDim, tiles, sizeof(Stored), job.stages, device.shared_bytes);
  const int64_t blocks = std::min(most, units);
  if (Status status = simt::launch(
          {kOp, "attend_pieces"}, attend_pieces<Number, Stored, kDim>, dim3(static_cast<unsigned>(blocks)),
          dim3(static_cast<unsigned>(tiles * kThreadsOfRowTile)),
          static_cast<size_t>(shared_bytes(kDim, tiles, sizeof(Stored), job.stages)), p.stream, job);
      !status.ok() || job.most_pieces == 1) {
    return status;
  }
  const auto rows = static_cast<unsigned>(p.sequences * p.most_queries * p.heads);
  return simt::launch({kOp, "join_pieces"}, join_pieces<Number, kDim>, dim3(rows), dim3(kJoinThreads), 0,
                      p.stream, job);
}

template <typename Number, typename Stored>
Status run(const Params& p, const Job& job, const cuda::Properties& device) {
  return p.dim == 64 ? run<Number, Stored, 64>(p, job, device) : run<Number, Stored, 128>(p, job, device);
}

template <typename Number>
Status run(const Params& p, const Job& job, const cuda::Properties& device) {
  return p.cache == Cache::kFloat8 ? run<Number, Float8>(p, job, device)
                                   : run<Number, Number>(p, job, device);
}

}  // namespace

Status run_cuda(const Params& p, const Output& output, void* workspace) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  const Job job = job_of(p, output, workspace);
  return p.type == Type::kFloat16 ? run<Float16>(p, job, device) : run<BFloat16>(p, job, device);
}

Status which_cuda(std::string* name) {
  cuda::Properties device;
  if (Status status = cuda::properties(kOp, &device); !status.ok()) return status;
  *name = "cuda/sm80";
  return {};
}

}  // namespace earnest::attention::paged
