// SPDX-License-Identifier: Apache-2.0
// Path sm80: a block of 256 threads makes 128 x 128 of the output, each of eight warps 32 x 64. Three stages
// of shared memory hold a step of the depth each, two of them on their way while one is multiplied.
#include "kernels/common/pieces.h"
#include "kernels/common/strands.h"
#include "kernels/linear/linear_paths.h"
#include "kernels/linear/linear_plan.h"

namespace earnest::linear::gpu {
namespace {

constexpr int kThreads = 256, kStages = 3, kLineBytes = 128, kLinePieces = kLineBytes / kPieceBytes;
constexpr int kTileBytes = kTile * kLineBytes;
constexpr size_t kSharedBytes = 2 * kStages * kTileBytes;
// Of a warp: two strips of 16 rows, and two groups of 32 columns.
constexpr int kStrips = 2, kColumnTiles = 8;

template <typename Stored>
constexpr int kStep = kLineBytes / static_cast<int>(sizeof(Stored));  // along the depth
template <typename Stored>
constexpr int kOfPiece = kPieceBytes / static_cast<int>(sizeof(Stored));
static_assert(kStrandUnit % kStep<BFloat16> == 0 && kStrandUnit % kStep<float> == 0);

using Sums = float[kStrips][kColumnTiles][4];

// Of the calling lane: g and t of a fragment, and where its warp begins in the tile.
__device__ inline int lane_row() { return static_cast<int>(threadIdx.x) % 32 / 4; }
__device__ inline int lane_column() { return static_cast<int>(threadIdx.x) % 4; }
__device__ inline int warp_row() { return static_cast<int>(threadIdx.x) / 32 % 4 * 32; }
__device__ inline int warp_column() { return static_cast<int>(threadIdx.x) / 128 * 64; }

// Which column of the warp stands in column g of the j-th fragment: so chosen that a lane's sums of four
// fragments, their columns 2t and 2t + 1, are 8 columns of the output that follow each other.
__device__ inline int column_of(int j, int g) { return j / 4 * 32 + g / 2 * 8 + j % 4 * 2 + g % 2; }

// Rows [row, row + 128) of a matrix at depth [k, k + a step), on their way. What lies outside is 0.
template <typename Stored>
__device__ inline void load_tile(const Bytes& to, const void* matrix, int64_t row, int64_t rows, int64_t k,
                                 int64_t depth, bool wide) {
  const auto* data = static_cast<const Stored*>(matrix);
#pragma unroll
  for (int i = 0; i < kTile * kLinePieces / kThreads; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads;
    const int line = index / kLinePieces, piece = index % kLinePieces;
    const int64_t at = k + piece * kOfPiece<Stored>;
    const int count = row + line < rows ? count_of<Stored>(depth - at) : 0;
    const Stored* from = data + (count > 0 ? (row + line) * depth + at : 0);
    copy_piece(&to[place_in_tile(line, piece)], from, count, wide);
  }
}

__device__ inline void multiply(const Bytes& left, const Bytes& right, Sums& sums, BFloat16) {
#pragma unroll
  for (int chunk = 0; chunk < kLinePieces / 4; ++chunk) {
    const int piece = 4 * chunk + lane_column();
    Piece a[kStrips][2];
#pragma unroll
    for (int i = 0; i < 2 * kStrips; ++i)
      a[i / 2][i % 2] = piece_at(left, place_in_tile(warp_row() + 8 * i + lane_row(), piece));
#pragma unroll
    for (int j = 0; j < kColumnTiles; j += 2) {
      Piece b[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        b[i] = piece_at(right, place_in_tile(warp_column() + column_of(j + i, lane_row()), piece));
#pragma unroll
      for (int n = 0; n < 8; ++n) multiply_half(sums[n / 2 % 2][j + n % 2], a[n / 2 % 2], b[n % 2], n / 4);
    }
  }
}

__device__ inline float4 floats_at(const Bytes& from, int line, int piece) {
  return *reinterpret_cast<const float4*>(&from[place_in_tile(line, piece)]);
}

// float32 by multiply-adds, one number of the depth after the other.
__device__ inline float multiply_add(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
__device__ inline void multiply(const Bytes& left, const Bytes& right, Sums& sums, float) {
#pragma unroll 1
  for (int piece = 0; piece < kLinePieces; ++piece) {
    float4 a[kStrips][2];
#pragma unroll
    for (int i = 0; i < 2 * kStrips; ++i)
      a[i / 2][i % 2] = floats_at(left, warp_row() + 8 * i + lane_row(), piece);
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 b = floats_at(right, warp_column() + column_of(j, 2 * lane_column() + i), piece);
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& sum = sums[s][j][2 * half + i];
            sum = multiply_add(a[s][half], b, sum);
          }
        }
      }
    }
  }
}

// What a strand came to is added to those before it.
__device__ inline void add_strand(Sums& strand, Sums& sums) {
#pragma unroll
  for (int i = 0; i < kStrips * kColumnTiles * 4; ++i) {
    float& of_strand = strand[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4];
    sums[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4] += of_strand;
    of_strand = 0;
  }
}

template <typename Stored>
__device__ void multiply_all(const Operands& p, const PartOperands& part, int64_t row, int64_t column,
                             Sums& sums) {
  const Bytes shared = simt::dynamic_shared<unsigned char>(0, kSharedBytes);
  const auto place = [&](int64_t step) { return shared + static_cast<int>(step % kStages) * 2 * kTileBytes; };
  const int64_t steps = blocks_of(p.depth, kStep<Stored>);
  const auto load = [&](int64_t step) {
    if (step < steps) {
      const int64_t k = step * kStep<Stored>;
      load_tile<Stored>(place(step), p.left, row, p.rows, k, p.depth, p.wide);
      load_tile<Stored>(place(step) + kTileBytes, part.right, column, part.columns, k, p.depth, p.wide);
    }
    simt::copy_async_commit();  // empty groups too: that many are waited for
  };
  Sums strand = {};
  int64_t of_strand = strand_length(p.depth) / kStep<Stored>, left = of_strand;  // steps
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int64_t step = 0; step < steps; ++step) {
    simt::copy_async_wait<kStages - 2>();
    __syncthreads();  // the step is there, and everybody has read the one before it, whose place the next
                      // load takes
    load(step + kStages - 1);
    multiply(place(step), place(step) + kTileBytes, strand, Stored{});
    if (--left == 0) {
      add_strand(strand, sums);
      left = of_strand;
    }
  }
  if (left != of_strand) add_strand(strand, sums);
}

// 8 numbers of a row of the output, which begin at a column that is a multiple of 8.
__device__ inline void store8(float (&numbers)[8], BFloat16* to) {
  Piece piece;
#pragma unroll
  for (int i = 0; i < 4; ++i) piece.word[i] = simt::pack_bfloat16(numbers[2 * i], numbers[2 * i + 1]);
  *reinterpret_cast<Piece*>(to) = piece;
}
__device__ inline void store8(float (&numbers)[8], float* to) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    *reinterpret_cast<float4*>(to + i) =
        make_float4(numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]);
  }
}

template <typename Stored>
__device__ void store(const Operands& p, const PartOperands& part, int64_t row, int64_t column, Sums& sums) {
  const auto* bias = static_cast<const Stored*>(part.bias);
  auto* output = static_cast<Stored*>(p.output);
#pragma unroll
  for (int n = 0; n < 2 * kStrips * kColumnTiles / 4; ++n) {
    const int s = n / 4, half = n / 2 % 2, group = n % 2;
    const int64_t r = row + warp_row() + 16 * s + 8 * half + lane_row();
    const int64_t c = column + warp_column() + 32 * group + 8 * lane_column();
    if (r >= p.rows || c >= part.columns) continue;
    Stored* const to = output + r * p.columns + part.first_column + c;
    float numbers[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      numbers[i] = sums[s][4 * group + i / 2][2 * half + i % 2];
      if (bias != nullptr && c + i < part.columns) numbers[i] += widen(bias[c + i]);
    }
    if (p.wide_output) {
      store8(numbers, to);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (c + i < part.columns) narrow(numbers[i], &to[i]);
    }
  }
}

template <typename Stored>
__global__ void __launch_bounds__(kThreads, 1) tiles(const Operands p) {
  const TilePlace tile = tile_at(blockIdx.x, blocks_of(p.rows, kTile), p.column_blocks);
  const PartOperands& part = p.parts[part_of_block(p.parts, p.count, tile.column)];
  const int64_t row = tile.row * kTile, column = (tile.column - part.first_block) * kTile;
  Sums sums = {};
  multiply_all<Stored>(p, part, row, column, sums);
  store<Stored>(p, part, row, column, sums);
}

}  // namespace

template <typename Stored>
Status run_tiles(Operands p, void* stream) {
  p.column_blocks = cut_into_blocks(p.parts, p.count, kTile);
  const int64_t blocks = blocks_of(p.rows, kTile) * p.column_blocks;
  return simt::launch({kOp, "tiles"}, tiles<Stored>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                      kSharedBytes, stream, p);
}

template Status run_tiles<BFloat16>(Operands, void*);
template Status run_tiles<float>(Operands, void*);

}  // namespace earnest::linear::gpu
