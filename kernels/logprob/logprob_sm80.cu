// SPDX-License-Identifier: Apache-2.0
// Path sm80: a block of 256 threads takes a unit; three stages of shared memory, two of them on their way
// while one is multiplied.
#include <algorithm>

#include "kernels/logprob/logprob_block.h"

namespace earnest::logprob::gpu::sm80 {
namespace {

constexpr int kStages = 3;
constexpr size_t kSharedBytes = 2 * kStages * kOperandBytes;
constexpr int64_t kMostBlocks = 1 << 20;  // a block takes further units behind them

struct Grid {
  int64_t row_blocks, column_blocks;  // of units
  int64_t tiles;                      // of a unit, side by side
  int steps;                          // along the depth
  bool left_wide, right_wide;         // 16 bytes of the operand can be copied at once
};

// First row and column of a unit's tile.
struct Corner {
  int64_t row, column;
};
__device__ inline Corner corner_of(const Grid& grid, const TilePlace& unit, int side) {
  return {unit.row * kTile, (unit.column * grid.tiles + side) * kTile};
}

// The whole block together: sums += left right^T over all the depth.
template <typename Job>
__device__ void multiply_all(const Product& p, const Grid& grid, const TilePlace& unit, int side,
                             Bytes shared, Sums<typename Job::T>& sums) {
  using Stored = typename Job::Element;
  constexpr bool kLeft = Job::kLeftTransposed, kRight = Job::kRightTransposed;
  const auto load = [&](int step) {
    const Bytes to = shared + step % kStages * 2 * kOperandBytes;
    const Corner at = corner_of(grid, unit, side);
    const int64_t depth = int64_t{step} * kStep<Stored>;
    load_tile<Stored, kLeft>(to, p.left, at.row, p.rows, depth, p.depth, grid.left_wide);
    load_tile<Stored, kRight>(to + kOperandBytes, p.right, at.column, p.columns, depth, p.depth,
                              grid.right_wide);
  };
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < grid.steps) load(step);
    simt::copy_async_commit();  // empty groups too: that many are waited for
  }
  for (int step = 0; step < grid.steps; ++step) {
    simt::copy_async_wait<kStages - 2>();
    __syncthreads();  // the step is there, and everybody has read the one before it, whose place the next
                      // load takes
    if (step + kStages - 1 < grid.steps) load(step + kStages - 1);
    simt::copy_async_commit();
    const Bytes from = shared + step % kStages * 2 * kOperandBytes;
    multiply<kLeft, kRight>(from, from + kOperandBytes, sums, Stored{});
  }
  __syncthreads();  // the next tile's loads begin
}

template <typename Job>
__global__ void __launch_bounds__(kThreads, 1) product(const Product p, const Job job, const Grid grid) {
  const Bytes shared = simt::dynamic_shared<unsigned char>(0, kSharedBytes);
  EARNEST_SHARED(TilePlace, place, 1);  // and what follows from it is found when it is asked for: registers
                                        // are for sums
  const TilePlace& unit = place[0];
  for (int64_t index = blockIdx.x; index < grid.row_blocks * grid.column_blocks; index += gridDim.x) {
    __syncthreads();  // everybody is done with the last unit
    if (threadIdx.x == 0) place[0] = tile_at(index, grid.row_blocks, grid.column_blocks);
    __syncthreads();
    const auto row = [&] { return unit.row * kTile + warp_row(); };
    typename Job::State states[kStripsOfWarp];
#pragma unroll
    for (int s = 0; s < kStripsOfWarp; ++s) job.begin(states[s], row() + s * kStripRows);
    for (int side = 0; side < grid.tiles; ++side) {
      const auto column = [&] { return corner_of(grid, unit, side).column + warp_column(); };
      if (corner_of(grid, unit, side).column >= p.columns) break;
      Sums<typename Job::T> sums;
#pragma unroll
      for (int s = 0; s < kStripsOfWarp; ++s)
        job.template load<kJ>(sums[s], row() + s * kStripRows, column());
      multiply_all<Job>(p, grid, unit, side, shared, sums);
#pragma unroll
      for (int s = 0; s < kStripsOfWarp; ++s)
        job.template tile<kJ>(states[s], sums[s], row() + s * kStripRows, column());
    }
    const int64_t part = unit.column * kParts.parts + warp_column() / kColumnsOfWarp;
#pragma unroll
    for (int s = 0; s < kStripsOfWarp; ++s) job.end(states[s], row() + s * kStripRows, part);
  }
}

bool wide(const Operand& operand, size_t size) {
  return reinterpret_cast<uintptr_t>(operand.data) % kPieceBytes == 0 &&
         static_cast<size_t>(operand.pitch) * size % kPieceBytes == 0;
}

}  // namespace

template <typename Job>
Status run(const Product& p, const Job& job, void* stream) {
  constexpr size_t kSize = sizeof(typename Job::Element);
  const int64_t tiles = Job::kByParts ? kParts.columns / kTile : 1;
  const Grid grid = {blocks_of(p.rows, kTile),
                     blocks_of(p.columns, tiles * kTile),
                     tiles,
                     static_cast<int>(blocks_of(p.depth, kStep<typename Job::Element>)),
                     wide(p.left, kSize),
                     wide(p.right, kSize)};
  const auto blocks = static_cast<unsigned>(std::min(grid.row_blocks * grid.column_blocks, kMostBlocks));
  return simt::launch({"logprob", Job::kName}, product<Job>, dim3(blocks), dim3(kThreads), kSharedBytes,
                      stream, p, job, grid);
}

template Status run(const Product&, const LogitSums<BFloat16>&, void*);
template Status run(const Product&, const LogitSums<float>&, void*);
template Status run(const Product&, const LogitSums<double>&, void*);
template Status run(const Product&, const LogitGradients<BFloat16>&, void*);
template Status run(const Product&, const LogitGradients<float>&, void*);
template Status run(const Product&, const LogitGradients<double>&, void*);
template Status run(const Product&, const HiddenGradient<BFloat16>&, void*);
template Status run(const Product&, const HiddenGradient<float>&, void*);
template Status run(const Product&, const HiddenGradient<double>&, void*);
template Status run(const Product&, const WeightGradient<BFloat16>&, void*);
template Status run(const Product&, const WeightGradient<float>&, void*);
template Status run(const Product&, const WeightGradient<double>&, void*);

}  // namespace earnest::logprob::gpu::sm80
