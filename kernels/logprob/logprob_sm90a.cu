// SPDX-License-Identifier: Apache-2.0
// Path sm90a. Two blocks form a cluster; a unit is theirs together, 256 rows by 256 columns, 128 rows each.
// In a block one warpgroup brings operands (one thread of it does), two multiply, 64 rows each, and do the
// job with what came out.
//
// The right operand's tile, 256 x 64, is the same for both blocks: each brings half of it into both. Per step
// of 64 a block reads 16 KB + 16 KB instead of 16 + 32.
//
// Four stages of shared memory go round. Of stage s, each block has
//   full[s]:   its own loading thread arrives once, telling of 48 KB: 16 of the left operand, and the right
//              one's two halves, of which one comes from the other block. That one may count before the own
//              thread has told of it: the phase cannot end before the own arrival, so counts may run ahead.
//   empty[s]:  16 warps arrive, eight of each block, when they have read the stage; at both blocks' barriers,
//              because either block's loads write into both. A warp arrives after wait_products has said that
//              the products reading the stage are done: one lane at the own block, one at the other.
// The n-th use of a stage (n = 0, 1, ...) waits at full for parity n % 2, and to load for it at empty for
// parity (n - 1) % 2 = (n + 1) % 2, which for n = 0 is over. Loading and multiplying threads count stages and
// phases alike, over all units, since they walk the same units, tiles and steps; so do both blocks, as the
// cluster decides the unit.
//
// A load for use n + 1 of the other block's stage cannot meet its use n: this block's thread has waited for
// the other block's eight warps. Before they leave, blocks meet: the other one may still arrive here, or load
// into here.
#include "kernels/common/cuda.h"
#include "kernels/common/hopper_products.h"
#include "kernels/logprob/logprob_paths.h"

namespace earnest::logprob::gpu::sm90a {
namespace {

using hopper::Barrier;
using hopper::kBox;
using hopper::kBoxBytes;

constexpr int kWarpgroup = 128, kThreads = 3 * kWarpgroup;
constexpr int kCluster = 2;
constexpr int kMultiplyingWarps = 8;
constexpr int kRows = 128, kColumns = 256;  // of a block's tile
constexpr int kLeftBytes = kRows / kBox * kBoxBytes, kRightBytes = kColumns / kBox * kBoxBytes;
constexpr int kStageBytes = kLeftBytes + kRightBytes;
constexpr int kStages = 4;
constexpr int kJ = kColumns / 8;
// Registers: 65,536 a multiprocessor. 128 threads with 56 and 256 with 224 are 64,512.
constexpr int kLoadingRegisters = 56, kMultiplyingRegisters = 224;

struct Barriers {
  Barrier full[kStages], empty[kStages];
};
// Dynamic shared memory need not begin on 1024, which boxes do.
constexpr int kBoxAlignment = 1024;
constexpr size_t kSharedBytes = kStages * kStageBytes + sizeof(Barriers) + kBoxAlignment;
static_assert(kSharedBytes <= 227 * 1024);

struct Walk {
  int64_t row_blocks, column_blocks;  // of units
  int64_t tiles;                      // of a unit, side by side
  int64_t columns, steps;             // of the product; steps of 64 along the depth
};

// Where a thread stands in the ring of stages.
struct Turn {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Calls tile(unit, index) for each tile of the cluster's units, and end(unit) after each unit's last.
template <typename Tile, typename End>
__device__ inline void walk_tiles(const Walk& walk, const Tile& tile, const End& end) {
  const int64_t clusters = gridDim.x / kCluster;
  for (int64_t index = blockIdx.x / kCluster; index < walk.row_blocks * walk.column_blocks;
       index += clusters) {
    const TilePlace unit = tile_at(index, walk.row_blocks, walk.column_blocks);
    for (int64_t i = unit.column * walk.tiles; i < (unit.column + 1) * walk.tiles; ++i) {
      if (i * kColumns < walk.columns) tile(unit, i);
    }
    end(unit);
  }
}

// Brings box `box` of an operand: rows from `row`, steps along the depth from `k`.
template <bool kTransposed, typename Load>
__device__ inline void load_operand(int64_t row, int64_t k, const Load& load) {
  const int r = static_cast<int>(row), d = static_cast<int>(k);
  if constexpr (kTransposed) {
    load(r, d);
  } else {
    load(d, r);
  }
}

template <typename Job>
__device__ inline void bring_operands(const hopper::TensorMap& left, const hopper::TensorMap& right,
                                      const Walk& walk, unsigned char* stages, Barriers* barriers) {
  const int rank = hopper::cluster_rank();
  Turn turn;
  walk_tiles(
      walk,
      [&](const TilePlace& unit, int64_t tile) {
        const int64_t row = (unit.row * kCluster + rank) * kRows, column = tile * kColumns;
        for (int64_t step = 0; step < walk.steps; ++step, turn.next()) {
          Barrier* const full = &barriers->full[turn.stage];
          unsigned char* const stage = stages + turn.stage * kStageBytes;
          hopper::wait(&barriers->empty[turn.stage], turn.parity ^ 1);
          hopper::arrive_expecting(full, kStageBytes);
#pragma unroll
          for (int box = 0; box < kRows / kBox; ++box) {
            load_operand<Job::kLeftTransposed>(row + box * kBox, step * kBox, [&](int inner, int outer) {
              hopper::load_box(stage + box * kBoxBytes, left, inner, outer, full);
            });
          }
#pragma unroll
          for (int half = 0; half < kColumns / kBox / kCluster; ++half) {
            const int box = rank * (kColumns / kBox / kCluster) + half;
            load_operand<Job::kRightTransposed>(column + box * kBox, step * kBox, [&](int inner, int outer) {
              hopper::load_box_for(0b11, stage + kLeftBytes + box * kBoxBytes, right, inner, outer, full);
            });
          }
        }
      },
      [](const TilePlace&) {});
}

// The warpgroup's 64 rows, `first` of them in the block's tile: sums += left right^T over all steps.
template <typename Job>
__device__ inline void multiply_all(int64_t steps, int first, unsigned char* stages, Barriers* barriers,
                                    Turn* turn, Strip<float, kJ>& sums) {
  constexpr bool kLeft = Job::kLeftTransposed, kRight = Job::kRightTransposed;
  const int lane = static_cast<int>(threadIdx.x) % simt::kWarpSize;
  const auto release = [&](int stage) {
    if (lane < kCluster) hopper::arrive_at(&barriers->empty[stage], lane);
  };
  int before = 0;
  hopper::settle(sums);
  for (int64_t step = 0; step < steps; ++step, turn->next()) {
    hopper::wait(&barriers->full[turn->stage], turn->parity);
    const uint32_t left = simt::shared_address(stages + turn->stage * kStageBytes), right = left + kLeftBytes;
    hopper::begin_products();
#pragma unroll
    for (int k = 0; k < kBox; k += hopper::kStep) {
      hopper::multiply_64x256x16<kLeft, kRight>(
          sums, hopper::descriptor(left + hopper::operand_offset(kLeft, first, k)),
          hopper::descriptor(right + hopper::operand_offset(kRight, 0, k)));
    }
    hopper::close_products();
    hopper::wait_products<1>();  // those of the step before
    if (step > 0) release(before);
    before = turn->stage;
  }
  hopper::wait_products<0>();
  hopper::settle(sums);
  release(before);
}

template <typename Job>
__device__ inline void multiply_and_do(const Job& job, const Walk& walk, unsigned char* stages,
                                       Barriers* barriers) {
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
  const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / simt::kWarpSize;
  const int rank = hopper::cluster_rank(), first = warpgroup * kBox;
  const auto row_of = [&](const TilePlace& unit) {
    return (unit.row * kCluster + rank) * kRows + first + warp * kStripRows;
  };
  Turn turn;
  typename Job::State state;
  bool fresh = true;
  walk_tiles(
      walk,
      [&](const TilePlace& unit, int64_t tile) {
        const int64_t row = row_of(unit), column = tile * kColumns;
        if (fresh) job.begin(state, row);
        fresh = false;
        Strip<float, kJ> sums;
        job.template load<kJ>(sums, row, column);
        multiply_all<Job>(walk.steps, first, stages, barriers, &turn, sums);
        job.template tile<kJ>(state, sums, row, column);
      },
      [&](const TilePlace& unit) {
        job.end(state, row_of(unit), unit.column);
        fresh = true;
      });
}

template <typename Job>
__global__ void __launch_bounds__(kThreads, 1)
    product(const __grid_constant__ hopper::TensorMap left, const __grid_constant__ hopper::TensorMap right,
            const __grid_constant__ Job job, const __grid_constant__ Walk walk) {
  const auto shared = simt::dynamic_shared<unsigned char>(0, kSharedBytes);
  const uint32_t past = simt::shared_address(shared) % kBoxAlignment;
  unsigned char* const stages = &shared[(kBoxAlignment - past) % kBoxAlignment];
  auto* const barriers = reinterpret_cast<Barriers*>(stages + kStages * kStageBytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      hopper::init(&barriers->full[stage], 1);
      hopper::init(&barriers->empty[stage], kCluster * kMultiplyingWarps);
    }
    hopper::fence_init();
  }
  hopper::cluster_sync();
  if (threadIdx.x < kWarpgroup) {
    hopper::leave_registers<kLoadingRegisters>();
    if (threadIdx.x == 0) bring_operands<Job>(left, right, walk, stages, barriers);
  } else {
    hopper::take_registers<kMultiplyingRegisters>();
    multiply_and_do(job, walk, stages, barriers);
  }
  hopper::cluster_sync();
}

Status map_of(const Operand& operand, bool transposed, int64_t rows, int64_t depth, hopper::TensorMap* map) {
  return hopper::tensor_map("logprob", operand.data, transposed ? rows : depth, transposed ? depth : rows,
                            operand.pitch, map);
}

}  // namespace

template <typename Job>
Status run(const Product& p, const Job& job, void* stream) {
  hopper::TensorMap left, right;
  if (Status status = map_of(p.left, Job::kLeftTransposed, p.rows, p.depth, &left); !status.ok())
    return status;
  if (Status status = map_of(p.right, Job::kRightTransposed, p.columns, p.depth, &right); !status.ok())
    return status;
  cuda::Properties device;
  if (Status status = cuda::properties("logprob", &device); !status.ok()) return status;
  const int64_t tiles = Job::kByParts ? kParts.columns / kColumns : 1;
  const Walk walk = {blocks_of(p.rows, kCluster * kRows), blocks_of(p.columns, tiles * kColumns), tiles,
                     p.columns, blocks_of(p.depth, kBox)};
  const int64_t clusters =
      std::min<int64_t>(walk.row_blocks * walk.column_blocks, device.multiprocessors / kCluster);
  return simt::launch_clusters(kCluster, {"logprob", Job::kName}, product<Job>,
                               dim3(static_cast<unsigned>(clusters * kCluster)), dim3(kThreads), kSharedBytes,
                               stream, left, right, job, walk);
}

template Status run(const Product&, const LogitSums<BFloat16>&, void*);
template Status run(const Product&, const LogitGradients<BFloat16>&, void*);
template Status run(const Product&, const HiddenGradient<BFloat16>&, void*);
template Status run(const Product&, const WeightGradient<BFloat16>&, void*);

}  // namespace earnest::logprob::gpu::sm90a
