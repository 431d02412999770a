// SPDX-License-Identifier: Apache-2.0
// What a kernel may rely on (kernels/common/simt.h): the same in the emulator and on a GPU.
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/common/record_fault.h"
#include "kernels/common/simt.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

using namespace earnest;

namespace {

Status launch(const char* kernel, auto function, dim3 grid, dim3 block, size_t shared_bytes,
              auto... arguments) {
  if (Status status =
          simt::launch({"test", kernel}, function, grid, block, shared_bytes, nullptr, arguments...);
      !status.ok())
    return status;
  return cuda::synchronize("test", nullptr);
}

__global__ void write_places(int64_t* out) {
  const int64_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int64_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

// Each thread passes its number on to the one beside it, by shared memory, many times.
template <int kThreads>
__global__ void rotate_in_shared(const int* in, int* out, int rounds) {
  EARNEST_SHARED(int, ring, kThreads);
  const int thread = threadIdx.x;
  ring[thread] = in[blockIdx.x * kThreads + thread];
  for (int i = 0; i < rounds; ++i) {
    __syncthreads();
    const int next = ring[(thread + 1) % kThreads];
    __syncthreads();
    ring[thread] = next;
  }
  out[blockIdx.x * kThreads + thread] = ring[thread];
}

__device__ double sum_of(simt::Shared<double> x, int count) {
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += x[i];
  return sum;
}

__global__ void sum_in_dynamic_memory(double* out, int half) {
  const auto low = simt::dynamic_shared<double>(0, half);
  const auto high = simt::dynamic_shared<double>(half * sizeof(double), half);
  (static_cast<int>(threadIdx.x) < half ? low[threadIdx.x] : high[threadIdx.x - half]) = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) *out = sum_of(low, half) + 1000 * sum_of(high + 1, half - 1);
}

__global__ void exchange_in_warp(float* out) {
  const int lane = threadIdx.x % 32;
  const float mine = static_cast<float>(threadIdx.x);
  float* mine_out = out + threadIdx.x * 8;
  mine_out[0] = __shfl_sync(simt::kFullWarp, mine, 5);
  mine_out[1] = __shfl_sync(simt::kFullWarp, mine, lane + 3, 8);
  mine_out[2] = __shfl_up_sync(simt::kFullWarp, mine, 2);
  mine_out[3] = __shfl_down_sync(simt::kFullWarp, mine, 2, 16);
  mine_out[4] = __shfl_xor_sync(simt::kFullWarp, mine, 9);
  mine_out[5] = static_cast<float>(__shfl_xor_sync(simt::kFullWarp, 1e9 + mine, 1) - 1e9);
  mine_out[6] = mine_out[7] = -1.0f;
  if (lane % 2 == 1) mine_out[6] = __shfl_sync(0xaaaaaaaau, mine, 31);  // half a warp by itself
  if (lane < 4) {
    for (int i = 0; i <= lane; ++i) mine_out[7] = static_cast<float>(i);
    __syncwarp(0xfu);
  }
}

__global__ void vote(unsigned* out) {
  const int lane = threadIdx.x % 32;
  unsigned* mine = out + threadIdx.x * 6;
  mine[0] = __ballot_sync(simt::kFullWarp, lane % 3 == 0);
  mine[1] = __any_sync(simt::kFullWarp, lane == 31) + 2 * __any_sync(simt::kFullWarp, lane == 32);
  mine[2] = __all_sync(simt::kFullWarp, lane < 32) + 2 * __all_sync(simt::kFullWarp, lane < 31);
  mine[3] = __syncthreads_count(threadIdx.x % 5 == 0);
  mine[4] = (__syncthreads_or(threadIdx.x == 63) != 0) + 2 * (__syncthreads_or(threadIdx.x == 64) != 0);
  mine[5] = (__syncthreads_and(threadIdx.x < 64) != 0) + 2 * (__syncthreads_and(threadIdx.x < 63) != 0);
}

// The last block to come sums what all have left behind.
__global__ void sum_by_last_block(int* parts, unsigned* ticket, int* total) {
  EARNEST_SHARED(int, last, 1);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    last[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last[0] || threadIdx.x != 0) return;
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i)
    sum += static_cast<int>(simt::load_acquire(reinterpret_cast<unsigned*>(&parts[i])));
  *total = sum;
}

// Each block waits for the one before, in the order in which they began.
__global__ void chain(unsigned* ticket, unsigned* values) {
  EARNEST_SHARED(unsigned, place, 1);
  if (threadIdx.x == 0) place[0] = atomicAdd(ticket, 1u);
  __syncthreads();
  const unsigned mine = place[0];
  if (threadIdx.x != 0) return;
  unsigned before = 1;
  while (mine > 0 && (before = simt::load_acquire(&values[mine - 1])) == 0) simt::pause();
  simt::store_release(&values[mine], before + mine);
}

__global__ void count_by_atomics(int* counts, FaultWord* fault) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&counts[0], 1);
  atomicMax(&counts[1], i);
  atomicMin(&counts[2], -i);
  atomicOr(&counts[3], 1 << i % 20);
  if (i % 50 == 49) record_fault(fault, {FaultOp::kWhiten, int64_t{1} << 40 | i, i % 7});
}

}  // namespace

TEST(every_thread_of_the_grid_runs_once_and_knows_its_place) {
  OnDevice<int64_t> out(std::vector<int64_t>(6 * 30, -1));
  CHECK(launch("write_places", write_places, {3, 2, 1}, {5, 3, 2}, 0, out.data()).ok());
  for (int64_t i = 0; i < 6 * 30; ++i) CHECK(out.values()[i] == 1000 * (i / 30) + i % 30);
}

TEST(a_block_shares_memory_and_meets_at_barriers) {
  constexpr int kThreads = 96, kBlocks = 5, kRounds = 7;
  std::vector<int> in(kThreads * kBlocks);
  std::iota(in.begin(), in.end(), 0);
  OnDevice<int> from(in), to(std::vector<int>(in.size(), -1));
  CHECK(launch("rotate", rotate_in_shared<kThreads>, kBlocks, kThreads, 0, from.data(), to.data(), kRounds)
            .ok());
  const std::vector<int> out = to.values();
  for (int i = 0; i < kThreads * kBlocks; ++i)
    CHECK(out[i] == i / kThreads * kThreads + (i + kRounds) % kThreads);
}

TEST(dynamic_memory_is_cut_by_offset) {
  OnDevice<double> out(std::vector<double>{0.0});
  CHECK(launch("sum", sum_in_dynamic_memory, 1, 20, 20 * sizeof(double), out.data(), 10).ok());
  CHECK(out.values()[0] == 45 + 1000 * (145 - 10));
}

TEST(lanes_exchange_as_the_programming_guide_says) {
  OnDevice<float> out(std::vector<float>(64 * 8));
  CHECK(launch("exchange", exchange_in_warp, 1, 64, 0, out.data()).ok());
  const std::vector<float> found = out.values();
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, first = i - lane;
    const float* mine = &found[i * 8];
    CHECK(mine[0] == first + 5);
    CHECK(mine[1] == first + lane / 8 * 8 + (lane + 3) % 8);
    CHECK(mine[2] == (lane < 2 ? i : i - 2));
    CHECK(mine[3] == (lane % 16 < 14 ? i + 2 : i));
    CHECK(mine[4] == first + (lane ^ 9));
    CHECK(mine[5] == (i ^ 1));
    CHECK(mine[6] == (lane % 2 == 1 ? first + 31 : -1));
    CHECK(mine[7] == (lane < 4 ? lane : -1));
  }
}

TEST(votes_count_those_who_say_yes) {
  OnDevice<unsigned> out(std::vector<unsigned>(64 * 6));
  CHECK(launch("vote", vote, 1, 64, 0, out.data()).ok());
  const std::vector<unsigned> found = out.values();
  for (int i = 0; i < 64; ++i) {
    const unsigned* mine = &found[i * 6];
    CHECK(mine[0] == 0x49249249u && mine[1] == 1 && mine[2] == 1);
    CHECK(mine[3] == 13 && mine[4] == 1 && mine[5] == 1);
  }
}

TEST(the_last_block_sees_what_all_have_written) {
  OnDevice<int> parts(std::vector<int>(100)), total(std::vector<int>{0});
  OnDevice<unsigned> ticket(std::vector<unsigned>{0});
  CHECK(launch("last", sum_by_last_block, 100, 64, 0, parts.data(), ticket.data(), total.data()).ok());
  CHECK(total.values()[0] == 5050);
}

TEST(blocks_may_wait_for_those_that_began_before) {
  OnDevice<unsigned> ticket(std::vector<unsigned>{0}), values(std::vector<unsigned>(200));
  CHECK(launch("chain", chain, 200, 32, 0, ticket.data(), values.data()).ok());
  CHECK(values.values()[199] == 1 + 199 * 200 / 2);
}

TEST(integer_atomics_and_the_first_fault_do_not_depend_on_order) {
  OnDevice<int> counts(std::vector<int>{0, 0, 0, 0});
  OnDevice<FaultWord> fault(std::vector<FaultWord>{kNoFault});
  CHECK(launch("count", count_by_atomics, 10, 30, 0, counts.data(), fault.data()).ok());
  CHECK((counts.values() == std::vector<int>{300, 299, -299, (1 << 20) - 1}));
  const Fault first = fault_of(fault.values()[0]);
  CHECK(first.op == FaultOp::kWhiten && first.index == (int64_t{1} << 40 | 49) && first.argument == 0);
}
