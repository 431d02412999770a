// SPDX-License-Identifier: Apache-2.0
// The emulator's own promises: each mistake that a GPU would punish by a hang, a race or nonsense is found
// and named, and orders do vary.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/common/simt.h"
#include "tests/cpp/check.h"

using namespace earnest;

namespace {

template <typename... P, typename... A>
std::string message(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... arguments) {
  return simt::launch({"test", "wrong"}, kernel, grid, block, shared_bytes, nullptr, arguments...).message();
}

bool says(const std::string& message, const std::string& first, const std::string& second) {
  const bool found = message.rfind("[test] kernel wrong", 0) == 0 &&
                     message.find(first) != std::string::npos && message.find(second) != std::string::npos;
  if (!found) std::printf("  %s\n", message.c_str());
  return found;
}

__global__ void leave_before_barrier() {
  if (blockIdx.x == 1 && threadIdx.x == 7) return;
  __syncthreads();
}
__global__ void wait_at_two_lines() {
  if (threadIdx.x < 20)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void meet_in_warp_or_block() {
  if (threadIdx.x == 3) __syncwarp();
  __syncthreads();
}
__global__ void shuffle_without_all() {
  if (threadIdx.x != 9) __shfl_sync(simt::kFullWarp, 1, 0);
}
__global__ void shuffle_in_half_a_warp() { __shfl_xor_sync(simt::kFullWarp, 1, 1); }
__global__ void shuffle_from_outside_the_mask() { __shfl_sync(0xffu, 1, 8); }
__global__ void call_from_outside_the_mask() { __ballot_sync(1u, 1); }
__global__ void different_masks() { __ballot_sync(threadIdx.x < 16 ? 0xffffffffu : 0xffff0000u, 1); }
__global__ void different_calls() {
  if (threadIdx.x < 16)
    __any_sync(simt::kFullWarp, 1);
  else
    __all_sync(simt::kFullWarp, 1);
}
__global__ void write_past_static() {
  EARNEST_SHARED(float, tile, 33);
  tile[threadIdx.x + (blockIdx.x == 2)] = 0.0f;
}
__global__ void read_before_static() {
  EARNEST_SHARED(float, tile, 33);
  const auto part = tile + 10;
  if (threadIdx.x == 4) tile[0] = part[-1];
}
__global__ void ask_for_more_dynamic() { simt::dynamic_shared<float>(16, 5)[0] = 0.0f; }
__global__ void write_past_dynamic() { simt::dynamic_shared<float>(0, 8)[threadIdx.x] = 0.0f; }
__global__ void wait_for_nobody(const uint32_t* flag) {
  while (simt::load_acquire(flag) == 0) simt::pause();
}
__global__ void read_shared_first(float* out) {
  EARNEST_SHARED(float, tile, 32);
  out[threadIdx.x] = tile[threadIdx.x] + simt::dynamic_shared<float>(0, 32)[threadIdx.x];
}
__global__ void read_across_warp_without_barrier(int* mistakes) {
  EARNEST_SHARED(int, tile, 32);
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncwarp();
  tile[threadIdx.x] = 100;
  if (tile[31 - threadIdx.x] != 100) atomicAdd(mistakes, 1);  // a barrier is missing
}
__global__ void note_order(int* order, int* next) {
  if (threadIdx.x == 0) order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x);
}
__global__ void nothing() {}

}  // namespace

TEST(a_thread_that_does_not_come_to_a_barrier_is_named) {
  const std::string text = message(leave_before_barrier, 3, 64, 0);
  CHECK(says(text, "block (1, 0, 0)", "every thread of the block at __syncthreads (test_simt_emulator.cu:"));
  CHECK(says(text, "got thread (7, 0, 0) at its end", ""));
  CHECK(says(message(wait_at_two_lines, 1, 64, 0), "thread (0, 0, 0): expected every thread of the block",
             "got thread (20, 0, 0) at __syncthreads"));
  CHECK(says(message(meet_in_warp_or_block, 1, 32, 0),
             "thread (3, 0, 0): expected every lane of its mask at __syncwarp", "at __syncthreads"));
}

TEST(a_lane_that_does_not_come_to_its_warp_is_named) {
  CHECK(says(message(shuffle_without_all, 1, 32, 0), "every lane of its mask at __shfl_sync",
             "got thread (9, 0, 0) at its end"));
  CHECK(says(message(shuffle_in_half_a_warp, 1, 16, 0), "__shfl_xor_sync", "lanes that do not exist"));
  CHECK(says(message(shuffle_from_outside_the_mask, 1, 8, 0), "a source lane of the mask", "got 8"));
  CHECK(says(message(call_from_outside_the_mask, 1, 2, 0), "thread (1, 0, 0)",
             "a mask that names the calling lane 1"));
  CHECK(says(message(different_masks, 1, 32, 0), "every lane of its mask", "__ballot_sync"));
  CHECK(says(message(different_calls, 1, 32, 0), "every lane of its mask at __any_sync", "at __all_sync"));
}

TEST(accesses_past_shared_memory_are_named) {
  CHECK(message(write_past_static, 2, 33, 0).empty());
  CHECK(says(message(write_past_static, 3, 33, 0), "block (2, 0, 0), thread (32, 0, 0)",
             "expected an index in [0, 33) of shared tile, got 33"));
  CHECK(says(message(read_before_static, 1, 32, 0), "thread (4, 0, 0)", "got -1"));
  CHECK(message(write_past_dynamic, 1, 8, 32).empty());
  CHECK(says(message(write_past_dynamic, 1, 9, 32), "thread (8, 0, 0)", "[0, 8)"));
  CHECK(message(ask_for_more_dynamic, 1, 1, 36).empty());
  CHECK(says(message(ask_for_more_dynamic, 1, 1, 35), "the 35 bytes of dynamic shared memory",
             "20 bytes at 16"));
}

TEST(endless_waiting_is_found_out) {
  const uint32_t flag = 0;
  CHECK(says(message(wait_for_nobody, 2, 2, 0, &flag), "an end of waiting for other blocks", "none after"));
}

TEST(shared_memory_begins_as_not_a_number) {
  std::vector<float> out(32);
  for (int repeat = 0; repeat < 2; ++repeat) {
    CHECK(message(read_shared_first, 1, 32, 128, out.data()).empty());
    for (float x : out) CHECK(std::isnan(x));
  }
}

TEST(a_missing_barrier_shows) {
  int mistakes = 0;
  CHECK(message(read_across_warp_without_barrier, 4, 32, 0, &mistakes).empty());
  CHECK(mistakes > 0);
}

TEST(orders_are_drawn_and_can_be_had_again) {
  const auto order_of = [](uint64_t seed) {
    std::vector<int> order(50);
    int next = 0;
    simt::set_seed(seed);
    CHECK(message(note_order, 50, 33, 0, order.data(), &next).empty());
    CHECK(next == 50);
    return order;
  };
  const std::vector<int> first = order_of(1);
  CHECK(first == order_of(1) && first != order_of(2));
  CHECK(!std::is_sorted(first.begin(), first.end()));
}

TEST(launches_that_a_gpu_refuses_are_refused) {
  CHECK(says(message(nothing, 0, 32, 0), "blocks", "got (0, 1, 1)"));
  CHECK(says(message(nothing, 1, 1025, 0), "1 to 1024 threads", "got (1025, 1, 1)"));
  CHECK(says(message(nothing, {1, 70000}, 1, 0), "a grid of", "got (1, 70000, 1)"));
  CHECK(says(message(nothing, 1, 1, 227 * 1024 + 1), "at most 232448 bytes", "got 232449"));
}

TEST(a_failed_launch_leaves_the_emulator_whole) {
  for (int i = 0; i < 20; ++i) CHECK(!message(leave_before_barrier, 3, 256, 0).empty());
  CHECK(message(nothing, 10, 256, 0).empty());
}
