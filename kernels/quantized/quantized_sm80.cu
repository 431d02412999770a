// SPDX-License-Identifier: Apache-2.0
// Path sm80: a block of 256 threads makes 128 rows by 64 outputs, each of eight warps 32 rows by a pair of
// panels. Four stages of shared memory hold a step of 64 inputs each, x and codes as they lie in memory;
// codes become bfloat16 in registers.
#include "kernels/common/strands.h"
#include "kernels/quantized/quantized_codes.h"

namespace earnest::quantized::gpu {
namespace {

constexpr int kThreads = 256, kStages = 4, kStep = kStrandUnit, kStrips = 2;
constexpr int kLeftBytes = kTileRows * kStep * 2, kPanelsOfTile = kTileOutputs / kPanel;

template <int kBits>
constexpr int kStepOfPanel = kBits == 8 ? kStep * kPanel : kStep / kGroup * kGroupBytes;
template <int kBits>
constexpr int kStageBytes = kLeftBytes + kPanelsOfTile * kStepOfPanel<kBits>;

using Sums = PairSums[kStrips];

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int warp_row() { return static_cast<int>(threadIdx.x) / 32 % 4 * 32; }
__device__ inline int warp_pair() { return static_cast<int>(threadIdx.x) / 128; }

// Where byte `at` of a panel's step lies. int8: lanes of equal g would meet the same banks in every line of
// 128, so that its pieces change places.
template <int kBits>
__device__ inline int place_in_step(int at) {
  return kBits == 8 ? at ^ at / 128 % 4 * 2 * kPieceBytes : at;
}

// Rows of x, 64 inputs of one plane from k on, on their way.
__device__ inline void load_left(const Job& job, const Bytes& to, int64_t row, int64_t plane, int64_t k) {
#pragma unroll
  for (int i = 0; i < kLeftBytes / kPieceBytes / kThreads; ++i) {
    const int index = static_cast<int>(threadIdx.x) + i * kThreads, line = index / 8, piece = index % 8;
    const int64_t r = row + line, at = k + 8 * piece;
    const int count = r < job.rows ? count_of<BFloat16>(job.inputs - at) : 0;
    const BFloat16* from = job.left + (count > 0 ? plane * job.plane + r * job.pitch + at : 0);
    copy_piece(&to[place_in_tile(line, piece)], from, count, job.wide);
  }
}

// The codes of four panels for them (int4: and their scales), which lie there in one run each.
template <int kBits>
__device__ inline void load_codes(const Job& job, const PartJob& part, const Bytes& to, int64_t output,
                                  int64_t k) {
  constexpr int kBytes = kStepOfPanel<kBits>, kPieces = kBytes / kPieceBytes;
  const int64_t begin = kBits == 8 ? kPanel * 4 + k * kPanel : k / kGroup * kGroupBytes;
  const int64_t panels = blocks_of(part.outputs - output, kPanel);
  for (int i = static_cast<int>(threadIdx.x); i < kPanelsOfTile * kPieces; i += kThreads) {
    const int panel = i / kPieces, within = i % kPieces * kPieceBytes;
    const bool there = panel < panels && begin + within < job.panel_bytes;
    const int64_t from = (output / kPanel + panel) * job.panel_bytes + begin + within;
    simt::copy_async_16(&to[panel * kBytes + place_in_step<kBits>(within)], part.packed + (there ? from : 0),
                        there ? kPieceBytes : 0);
  }
}

template <int kBits>
__device__ inline void multiply_step(const Bytes& left, const Bytes& codes, Sums& sums) {
  constexpr int64_t kFirst = kBits == 8 ? kPanel * 4 : 0;  // of a panel's bytes, which is not here
  const int pair = 2 * warp_pair() * kStepOfPanel<kBits>;
#pragma unroll
  for (int chunk = 0; chunk < kStep / kChunk; ++chunk) {
    Piece words[kCodePieces<kBits>];
#pragma unroll
    for (int i = 0; i < kCodePieces<kBits>; ++i) {
      const int at = static_cast<int>(code_offset<kBits>(chunk * kChunk, i) - kFirst);
      words[i] = piece_at(codes, pair + panel_of_lane() * kStepOfPanel<kBits> + place_in_step<kBits>(at));
    }
    const CodeFragments<kBits> fragments(words);
    Affine affine;
    if (kBits == 4) {
      const int t = lane() % 4;
      affine.load(codes, pair + t / 2 * kStepOfPanel<kBits> + chunk * kGroupBytes + t % 2 * 32);
    }
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      Piece rows[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int line = warp_row() + 16 * s + 8 * half + lane() / 4;
        rows[half] = piece_at(left, place_in_tile(line, 4 * chunk + lane() % 4));
      }
      multiply<kBits>(rows, fragments, affine, sums[s]);
    }
  }
}

// What a strand came to is added to those before it.
__device__ inline void add_strand(Sums& strand, Sums& sums) {
#pragma unroll
  for (int i = 0; i < kStrips * 16; ++i) {
    float& of_strand = strand[i / 16][i / 4 % 4][i % 4];
    sums[i / 16][i / 4 % 4][i % 4] += of_strand;
    of_strand = 0;
  }
}

template <int kBits>
__device__ void multiply_all(const Job& job, const PartJob& part, int64_t row, int64_t output, Sums& sums) {
  const Bytes shared = simt::dynamic_shared<unsigned char>(0, kStages * kStageBytes<kBits>);
  const auto place = [&](int64_t step) {
    return shared + static_cast<int>(step % kStages) * kStageBytes<kBits>;
  };
  const int64_t steps = blocks_of(job.inputs, kStep) * job.planes;
  const auto load = [&](int64_t step) {
    if (step < steps) {
      const int64_t k = step / job.planes * kStep;
      load_left(job, place(step), row, step % job.planes, k);
      load_codes<kBits>(job, part, place(step) + kLeftBytes, output, k);
    }
    simt::copy_async_commit();  // empty groups too: that many are waited for
  };
  Sums strand = {};
  const int64_t of_strand = strand_length(job.inputs) / kStep * job.planes;
  int64_t left = of_strand;  // steps of it
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int64_t step = 0; step < steps; ++step) {
    simt::copy_async_wait<kStages - 2>();
    __syncthreads();  // the step is there, and everybody has read the one before it, whose place the next
                      // load takes
    load(step + kStages - 1);
    multiply_step<kBits>(place(step), place(step) + kLeftBytes, strand);
    if (--left == 0) {
      add_strand(strand, sums);
      left = of_strand;
    }
  }
  if (left != of_strand) add_strand(strand, sums);
}

template <int kBits>
__global__ void __launch_bounds__(kThreads, 1) tiles(const Job job, const int64_t row_blocks) {
  const int64_t column = blockIdx.x / row_blocks;  // blocks that run together share codes
  const PartJob& part = job.parts[part_of_block(job.parts, job.count, column)];
  const int64_t row = blockIdx.x % row_blocks * kTileRows,
                output = (column - part.first_block) * kTileOutputs;
  Sums sums = {};
  multiply_all<kBits>(job, part, row, output, sums);
#pragma unroll
  for (int n = 0; n < 2 * kStrips * 8; ++n) {
    const int s = n / 16, half = n / 8 % 2, i = n % 8;
    const int64_t r = row + warp_row() + 16 * s + 8 * half + lane() / 4;
    const int64_t o = output + warp_pair() * kPair + 8 * (lane() % 4) + i;
    if (r < job.rows && o < part.outputs) store<kBits>(job, part, r, o, sums[s][i % 4][2 * half + i / 4]);
  }
}

}  // namespace

template <int kBits>
Status run_tiles(Job job, void* stream) {
  const int64_t row_blocks = blocks_of(job.rows, kTileRows),
                blocks = cut_into_blocks(&job, kTileOutputs) * row_blocks;
  return simt::launch({kOp, "tiles"}, tiles<kBits>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                      static_cast<size_t>(kStages * kStageBytes<kBits>), stream, job, row_blocks);
}

template Status run_tiles<8>(Job, void*);
template Status run_tiles<4>(Job, void*);

}  // namespace earnest::quantized::gpu
