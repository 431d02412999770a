// SPDX-License-Identifier: Apache-2.0
// Path few: as many columns as the chip has room for in flight, W read once. Each warp takes one strand of
// the depth. What a lane multiplies it has copied itself, through a ring in shared memory: nobody waits for
// anybody but for the bytes, until the warps add their strands at the end.
#include "kernels/common/pieces.h"
#include "kernels/common/strands.h"
#include "kernels/linear/linear_paths.h"
#include "kernels/linear/linear_plan.h"

namespace earnest::linear::gpu {
namespace {

constexpr int kThreads = 32 * kStrands;

// The strand of the calling warp, one chunk after the other.
template <int kHalves, int kColumns, int kStages>
class Strand {
 public:
  static constexpr int kRowTiles = (kHalves + 1) / 2, kPieces = kHalves + kColumns;
  static constexpr int kBytes = kStages * kPieces * kThreads * kPieceBytes;
  using Sums = float[kRowTiles][kColumns][4];

  __device__ Strand(const Operands& p, const PartOperands& part, int64_t row, int64_t column)
      : p_(p),
        part_(part),
        row_(row + lane() / 4),
        column_(column + lane() / 4),
        ring_(simt::dynamic_shared<unsigned char>(0, kBytes)) {
    const int64_t length = strand_length(p.depth), first = threadIdx.x / 32 * length;
    end_ = first + length < p.depth ? first + length : p.depth;
    next_ = first + lane() % 4 * 8;
    chunks_ = first < end_ ? static_cast<int>(blocks_of(end_ - first, kChunk)) : 0;
  }

  __device__ void multiply(Sums& sums) {
    for (int chunk = 0; chunk < kStages - 1; ++chunk) load(chunk);
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      simt::copy_async_wait<kStages - 2>();
      load(chunk + kStages - 1);  // where the chunk before this one was
      Piece right[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) right[j] = piece_at(ring_, place(chunk, j));
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        Piece left[2] = {piece_at(ring_, place(chunk, kColumns + 2 * r)), {}};
        if (2 * r + 1 < kHalves) left[1] = piece_at(ring_, place(chunk, kColumns + 2 * r + 1));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) multiply_half(sums[r][j], left, right[j], half);
        }
      }
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int place(int chunk, int piece) {
    return ((chunk % kStages * kPieces + piece) * kThreads + static_cast<int>(threadIdx.x)) * kPieceBytes;
  }

  __device__ void load(int chunk) {
    if (chunk < chunks_) {
      const int count = count_of<BFloat16>(end_ - next_);
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        load(place(chunk, j), part_.right, column_ + 8 * j, part_.columns, count);
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
        load(place(chunk, kColumns + h), p_.left, row_ + 8 * h, p_.rows, count);
      next_ += kChunk;
    }
    simt::copy_async_commit();  // empty groups too: that many are waited for
  }
  __device__ void load(int to, const void* matrix, int64_t line, int64_t lines, int count) {
    const auto* from = static_cast<const BFloat16*>(matrix);
    if (line >= lines) count = 0;
    copy_piece(&ring_[to], from + (count > 0 ? line * p_.depth + next_ : 0), count, p_.wide);
  }

  const Operands& p_;
  const PartOperands& part_;
  const int64_t row_, column_;
  const Bytes ring_;
  int64_t next_, end_;  // along the depth: the lane's next piece, the strand's end
  int chunks_;
};

// Strands are added in their order, each number by one thread.
template <int kRows, int kColumns>
__device__ void add_strands(const Operands& p, const PartOperands& part, int64_t row, int64_t column,
                            const simt::Shared<float>& strands) {
  const int count = strands_of(p.depth);
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
    const int64_t r = row + i / kColumns, c = column + i % kColumns;
    if (r >= p.rows || c >= part.columns) continue;
    float sum = 0;
    for (int s = 0; s < count; ++s) sum += strands[s * kRows * kColumns + i];
    if (part.bias != nullptr) sum += widen(static_cast<const BFloat16*>(part.bias)[c]);
    narrow(sum, &static_cast<BFloat16*>(p.output)[r * p.columns + part.first_column + c]);
  }
}

template <int kHalves, int kColumns, int kStages>
__global__ void __launch_bounds__(kThreads) few_rows(const Operands p) {
  using Mine = Strand<kHalves, kColumns, kStages>;
  constexpr int kRowsOfBlock = 8 * kHalves, kColumnsOfBlock = 8 * kColumns;
  const PartOperands& part = p.parts[part_of_block(p.parts, p.count, blockIdx.x)];
  const int64_t row = int64_t{blockIdx.y} * kRowsOfBlock;
  const int64_t column = (blockIdx.x - part.first_block) * kColumnsOfBlock;
  typename Mine::Sums sums = {};
  Mine(p, part, row, column).multiply(sums);

  constexpr int kNumbers = kRowsOfBlock * kColumnsOfBlock;
  static_assert(kStrands * kNumbers * 4 <= Mine::kBytes);
  const auto strands = simt::dynamic_shared<float>(0, kStrands * kNumbers);
  __syncthreads();  // everybody has read the pieces that lay here
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = (8 * h + lane / 4) * kColumnsOfBlock + 8 * j + lane % 4 * 2 + i;
        strands[warp * kNumbers + at] = sums[h / 2][j][h % 2 * 2 + i];
      }
    }
  }
  __syncthreads();
  add_strands<kRowsOfBlock, kColumnsOfBlock>(p, part, row, column, strands);
}

template <int kHalves, int kColumns, int kStages>
Status run(Operands p, void* stream) {
  constexpr Few plan = {kHalves, kColumns, kStages};
  p.column_blocks = cut_into_blocks(p.parts, p.count, plan.columns_of_block());
  const dim3 grid(static_cast<unsigned>(p.column_blocks),
                  static_cast<unsigned>(blocks_of(p.rows, plan.rows_of_block())));
  return simt::launch({kOp, "few_rows"}, few_rows<kHalves, kColumns, kStages>, grid, dim3(kThreads),
                      static_cast<size_t>(plan.shared_bytes()), stream, p);
}

}  // namespace

Status run_few(Operands p, int64_t shared_bytes, void* stream) {
  const Few plan = few_plan(p.rows, shared_bytes);
  if (plan.halves == kFewOf8.halves) return run<kFewOf8.halves, kFewOf8.columns, kFewOf8.stages>(p, stream);
  if (plan.halves == kFewOf16.halves)
    return run<kFewOf16.halves, kFewOf16.columns, kFewOf16.stages>(p, stream);
  if (plan.halves == kFewOf32.halves)
    return run<kFewOf32.halves, kFewOf32.columns, kFewOf32.stages>(p, stream);
  return run<kFewOf64.halves, kFewOf64.columns, kFewOf64.stages>(p, stream);
}

}  // namespace earnest::linear::gpu
