// SPDX-License-Identifier: Apache-2.0
// Path few: codes are read once. A block takes a pair of panels, each of its warps one strand of the depth;
// what a lane multiplies it has copied itself, through a ring in shared memory (but for int4's scales, which
// lie once for the warp). At the end the warps add their strands.
#include "kernels/common/strands.h"
#include "kernels/quantized/quantized_codes.h"

namespace earnest::quantized::gpu {
namespace {

constexpr int kThreads = 32 * kStrands;

constexpr int stages_of(int halves) { return halves == 1 ? 8 : halves == 2 ? 6 : 4; }

template <int kBits, int kHalves>
class Strand {
 public:
  static constexpr int kStages = stages_of(kHalves), kRowTiles = (kHalves + 1) / 2;
  static constexpr int kPieces = kCodePieces<kBits> + kHalves;
  static constexpr int kScaleBytes = kBits == 4 ? kPair * 4 : 0;  // of a warp and stage
  static constexpr int kRingBytes = kStages * kPieces * kThreads * kPieceBytes;
  static constexpr int kBytes = kRingBytes + kStages * kStrands * kScaleBytes;
  using Sums = PairSums[kRowTiles];

  __device__ Strand(const Job& job, const PartJob& part, int64_t row, int64_t output)
      : job_(job),
        ring_(simt::dynamic_shared<unsigned char>(0, kBytes)),
        row_(row + lane() / 4),
        panel_(part.packed + (output / kPanel + panel_of_lane()) * job.panel_bytes),
        scales_(part.packed + (output / kPanel + lane() / 4) * job.panel_bytes + lane() % 4 * kPieceBytes),
        panels_(static_cast<int>(blocks_of(part.outputs - output, kPanel))) {
    const int64_t length = strand_length(job.inputs);
    first_ = warp() * length;
    end_ = first_ + length < job.inputs ? first_ + length : job.inputs;
    chunks_ = first_ < end_ ? static_cast<int>(blocks_of(end_ - first_, kStrandUnit)) * 2 * job.planes : 0;
  }

  __device__ void multiply(Sums& sums) {
    for (int chunk = 0; chunk < kStages - 1; ++chunk) load(chunk);
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      simt::copy_async_wait<kStages - 2>();
      __syncwarp();  // scales are there for all lanes, and all have read those before, whose place comes next
      load(chunk + kStages - 1);
      Piece words[kCodePieces<kBits>];
#pragma unroll
      for (int i = 0; i < kCodePieces<kBits>; ++i) words[i] = piece_at(ring_, place(chunk, i));
      const CodeFragments<kBits> codes(words);
      Affine affine;
      if (kBits == 4) affine.load(ring_, place_of_scales(chunk) + lane() % 4 * 32);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        Piece left[2] = {piece_at(ring_, place(chunk, kCodePieces<kBits> + 2 * r)), {}};
        if (2 * r + 1 < kHalves) left[1] = piece_at(ring_, place(chunk, kCodePieces<kBits> + 2 * r + 1));
        gpu::multiply<kBits>(left, codes, affine, sums[r]);
      }
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int place(int chunk, int piece) {
    return ((chunk % kStages * kPieces + piece) * kThreads + static_cast<int>(threadIdx.x)) * kPieceBytes;
  }
  __device__ static int place_of_scales(int chunk) {
    return kRingBytes + (chunk % kStages * kStrands + warp()) * kScaleBytes;
  }

  // Chunks go through 64 inputs of one plane, then of the next: the order of path sm80.
  __device__ void load(int chunk) {
    if (chunk < chunks_) {
      const int of_unit = 2 * job_.planes, within = chunk % of_unit;
      const int64_t k = first_ + chunk / of_unit * kStrandUnit + within % 2 * kChunk;
      const bool there = k < end_;
#pragma unroll
      for (int i = 0; i < kCodePieces<kBits>; ++i) {
        const bool copied = there && panel_of_lane() < panels_;
        simt::copy_async_16(&ring_[place(chunk, i)],
                            copied ? panel_ + code_offset<kBits>(k, i) : job_.parts[0].packed,
                            copied ? kPieceBytes : 0);
      }
      if (kBits == 4 && lane() < 8) {
        const bool copied = there && lane() / 4 < panels_;
        simt::copy_async_16(&ring_[place_of_scales(chunk) + lane() * kPieceBytes],
                            copied ? scales_ + k / kGroup * kGroupBytes : job_.parts[0].packed,
                            copied ? kPieceBytes : 0);
      }
      const int64_t at = k + lane() % 4 * 8;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const int64_t row = row_ + 8 * h;
        const int count = row < job_.rows ? count_of<BFloat16>(end_ - at) : 0;
        const BFloat16* from = job_.left + (count > 0 ? within / 2 * job_.plane + row * job_.pitch + at : 0);
        copy_piece(&ring_[place(chunk, kCodePieces<kBits> + h)], from, count, job_.wide);
      }
    }
    simt::copy_async_commit();  // empty groups too: that many are waited for
  }

  const Job& job_;
  const Bytes ring_;
  const int64_t row_;
  const unsigned char *const panel_, *const scales_;
  const int panels_;  // that there are from the pair's first on
  int64_t first_, end_;
  int chunks_;
};

template <int kBits, int kHalves>
__global__ void __launch_bounds__(kThreads) few_rows(const Job job) {
  using Mine = Strand<kBits, kHalves>;
  constexpr int kRows = 8 * kHalves, kNumbers = kRows * kPair;
  const PartJob& part = job.parts[part_of_block(job.parts, job.count, blockIdx.x)];
  const int64_t row = int64_t{blockIdx.y} * kRows, output = (blockIdx.x - part.first_block) * kPair;
  typename Mine::Sums sums = {};
  Mine(job, part, row, output).multiply(sums);

  static_assert(kStrands * kNumbers * 4 <= Mine::kRingBytes);
  const auto strands = simt::dynamic_shared<float>(0, kStrands * kNumbers);
  __syncthreads();  // everybody has read the pieces that lay here
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int at = (8 * h + lane / 4) * kPair + 8 * (lane % 4) + n;
      strands[warp * kNumbers + at] = sums[h / 2][n % 4][h % 2 * 2 + n / 4];
    }
  }
  __syncthreads();
  const int count = strands_of(job.inputs);
  for (int i = static_cast<int>(threadIdx.x); i < kNumbers; i += kThreads) {
    const int64_t r = row + i / kPair, o = output + i % kPair;
    if (r >= job.rows || o >= part.outputs) continue;
    float sum = 0;
    for (int s = 0; s < count; ++s) sum += strands[s * kNumbers + i];
    store<kBits>(job, part, r, o, sum);
  }
}

template <int kBits, int kHalves>
Status run(const Job& job, int64_t blocks, void* stream) {
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(blocks_of(job.rows, 8 * kHalves)));
  return simt::launch({kOp, "few_rows"}, few_rows<kBits, kHalves>, grid, dim3(kThreads),
                      static_cast<size_t>(Strand<kBits, kHalves>::kBytes), stream, job);
}

}  // namespace

template <int kBits>
Status run_few(Job job, int64_t shared_bytes, void* stream) {
  const int64_t blocks = cut_into_blocks(&job, kPair);
  const int halves = few_halves(job.rows, shared_bytes);
  if (halves == 1) return run<kBits, 1>(job, blocks, stream);
  if (halves == 2) return run<kBits, 2>(job, blocks, stream);
  if (halves == 4) return run<kBits, 4>(job, blocks, stream);
  return run<kBits, 8>(job, blocks, stream);
}

template Status run_few<8>(Job, int64_t, void*);
template Status run_few<4>(Job, int64_t, void*);

}  // namespace earnest::quantized::gpu
