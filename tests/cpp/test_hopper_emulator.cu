// SPDX-License-Identifier: Apache-2.0
// The rules of Hopper's instructions in the emulator: when a phase ends, and that each mistake is found and
// named. What the instructions do, there and on a GPU, is in test_hopper_sm90a.cu.
#include <cmath>
#include <string>
#include <vector>

#include "tests/cpp/hopper_boxes.h"

using namespace earnest;

namespace {

using simt::Arrival;

TensorMap map_of(const std::vector<BFloat16>& x, int64_t inner) {
  return earnest::map_of(x.data(), x.size(), inner);
}
bool says(const std::string& message, const std::string& part) {
  const bool found = message.find(part) != std::string::npos;
  if (!found) std::printf("  '%s' lacks '%s'\n", message.c_str(), part.c_str());
  return found;
}

// ---- mistakes ----

enum class Mistake {
  kNone,
  kNoFenceInit,
  kTooManyArrivals,
  kTooFewBytes,
  kWrittenOver,
  kNoInit,
  kWrittenUnfenced,
  kBoxOnNoLine,
  kLeavesBox,
  kNoBegin,
  kNoClose,
  kNoWait,
  kTouched,
  kOperandUnfenced,
  kOneWarp,
  kNoSwizzle,
  kPassesForNobody
};

__global__ void blunder(const TensorMap matrix, Mistake mistake) {
  unsigned char* const box = boxes(2 * kBoxBytes + 64);
  Barrier* const there = barrier_behind(box, 2);
  const auto has = [&](Mistake one) { return mistake == one; };
  if (threadIdx.x == 0) {
    if (!has(Mistake::kNoInit)) hopper::init(there, 1);
    if (!has(Mistake::kNoFenceInit)) hopper::fence_init();
    if (has(Mistake::kWrittenOver)) there->state = 0;
    if (has(Mistake::kWrittenUnfenced)) box[kBoxBytes - 1] = 7;
    hopper::arrive_expecting(there, 2 * kBoxBytes - (has(Mistake::kTooFewBytes) ? 16 : 0));
    if (has(Mistake::kTooManyArrivals)) hopper::arrive_at(there, 0);
    hopper::load_box(box + (has(Mistake::kBoxOnNoLine) ? 64 : 0), matrix, 0, 0, there);
    hopper::load_box(box + kBoxBytes, matrix, 0, 0, there);
  }
  __syncthreads();
  if (has(Mistake::kLeavesBox)) return;
  hopper::wait(there, 0);
  __syncthreads();
  if (has(Mistake::kOperandUnfenced) && threadIdx.x == 0) box[2] ^= 1;
  __syncthreads();
  if (has(Mistake::kPassesForNobody)) hopper::pass(1, 256);
  if (has(Mistake::kOneWarp) && threadIdx.x >= 32) return;
  float sums[8][4] = {};
  const uint32_t start = simt::shared_address(box);
  if (!has(Mistake::kNoBegin)) hopper::begin_products();
  const uint64_t left = hopper::descriptor(start) & ~(has(Mistake::kNoSwizzle) ? uint64_t{3} << 62 : 0);
  hopper::multiply_64x64x16(sums, left, hopper::descriptor(start + kBoxBytes), BFloat16{});
  if (!has(Mistake::kNoClose)) hopper::close_products();
  if (has(Mistake::kTouched)) sums[3][1] = 0;
  if (!has(Mistake::kNoWait)) hopper::wait_products<0>();
}

std::string blunder_with(Mistake mistake) {
  const auto x = random_numbers(64 * 64, 3);
  return message(blunder, 1, kWarpgroup, shared_for(2), map_of(x, 64), mistake);
}

__global__ void wait_for_nobody(int parity) {
  Barrier* const barrier = barrier_behind(boxes(64), 0);
  if (threadIdx.x == 0) {
    hopper::init(barrier, 3);
    hopper::arrive_at(barrier, 0);
    hopper::wait(barrier, parity);
  }
}
// The second phase's end is not seen by who asks for the first one's.
__global__ void ask_for_an_older_phase(int phases, int* seen) {
  Barrier* const barrier = barrier_behind(boxes(64), 0);
  hopper::init(barrier, 1);
  for (int i = 0; i < phases; ++i) hopper::arrive_at(barrier, 0);
  hopper::wait(barrier, 0);
  *seen = phases;
}
__global__ void read_sums_too_early(const TensorMap matrix, float* out) {
  unsigned char* const box = boxes(2 * kBoxBytes + 64);
  float sums[8][4] = {};
  static_cast<void>(matrix);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kBoxBytes; i += kWarpgroup) box[i] = 0;
  hopper::fence_shared();
  __syncthreads();
  const uint64_t operand = hopper::descriptor(simt::shared_address(box));
  hopper::begin_products();
  hopper::multiply_64x64x16(sums, operand, operand, BFloat16{});
  hopper::close_products();
  out[threadIdx.x] = sums[0][0];
  hopper::wait_products<0>();
  out[kWarpgroup + threadIdx.x] = sums[0][0];
}
__global__ void meet_in_parts(int threads, int* first) {
  const bool votes = hopper::meet_or(1 + static_cast<int>(threadIdx.x) / 64, threads, threadIdx.x == 70);
  if (votes) atomicAdd(first, 1);
  if (threadIdx.x < 64) {
    hopper::pass(3, 128);
  } else {
    hopper::meet(3, 128);
  }
}
template <int kFirst, int kOthers>
__global__ void share_registers() {
  if (threadIdx.x < kWarpgroup) {
    hopper::leave_registers<kFirst>();
  } else {
    hopper::take_registers<kOthers>();
  }
}
__global__ void arrive_at_who_has_gone() {
  Barrier* const barrier = barrier_behind(boxes(64), 0);
  hopper::init(barrier, 1);
  hopper::fence_init();
  hopper::cluster_sync();
  if (hopper::cluster_rank() == 1) return;
  for (int i = 0; i < 1000; ++i) simt::pause();
  hopper::arrive_at(barrier, 1);
}

}  // namespace

TEST(mistakes_are_named) {
  for_each_arrival([] {
    CHECK(blunder_with(Mistake::kNone).empty());
    CHECK(says(blunder_with(Mistake::kNoFenceInit), "fence_init between init"));
    CHECK(says(blunder_with(Mistake::kTooManyArrivals), "at most 1 arrivals in a phase, got one more"));
    CHECK(says(blunder_with(Mistake::kTooFewBytes), "0 of 1 arrivals and -16 bytes to come"));
    CHECK(says(blunder_with(Mistake::kWrittenOver), "a barrier that init has made, got one written over"));
    CHECK(says(blunder_with(Mistake::kNoInit), "a barrier that init has made, got other memory"));
    CHECK(says(blunder_with(Mistake::kWrittenUnfenced), "threads write and a box over it"));
    CHECK(says(blunder_with(Mistake::kBoxOnNoLine), "a box on 128 bytes"));
    CHECK(says(blunder_with(Mistake::kNoBegin), "begin_products between the writing of registers"));
    CHECK(says(blunder_with(Mistake::kNoClose), "close_products before the wait for all"));
    CHECK(says(blunder_with(Mistake::kNoWait), "wait_products before the end of a warp"));
    CHECK(says(blunder_with(Mistake::kTouched), "sums left alone from a product to its wait"));
    CHECK(says(blunder_with(Mistake::kOperandUnfenced), "threads write and products of it"));
    CHECK(says(blunder_with(Mistake::kOneWarp), "as many products of each warp of a warpgroup"));
    CHECK(says(blunder_with(Mistake::kNoSwizzle), "a descriptor of the 128-byte swizzle"));
    CHECK(says(blunder_with(Mistake::kPassesForNobody), "nobody left at a barrier of a block that ends"));
  });
  simt::set_arrival(Arrival::kLate);
  CHECK(says(blunder_with(Mistake::kLeavesBox), "no box on its way to a block that ends"));
  simt::set_arrival(Arrival::kDrawn);
}

TEST(phases_end_by_the_rules) {
  CHECK(message(wait_for_nobody, 1, 32, 2048, 1).empty());  // the phase before the first has ended
  CHECK(says(message(wait_for_nobody, 1, 32, 2048, 0), "phase 0 with 2 of 3 arrivals and 0 bytes to come"));
  CHECK(says(message(wait_for_nobody, 1, 32, 2048, 0),
             "an end of waiting at wait(0) (test_hopper_emulator.cu:"));
  for (const int phases : {1, 2, 3}) {
    int seen = 0;
    const std::string text = message(ask_for_an_older_phase, 1, 1, 2048, phases, &seen);
    CHECK(phases == 2 ? says(text, "phase 2 with 1 of 1 arrivals") : text.empty() && seen == phases);
  }
}

TEST(sums_of_products_under_way_are_no_numbers) {
  const auto x = random_numbers(64 * 64, 3);
  for_each_arrival([&] {
    std::vector<float> out(2 * kWarpgroup, 9);
    CHECK(message(read_sums_too_early, 1, kWarpgroup, shared_for(2), map_of(x, 64), out.data()).empty());
    for (int i = 0; i < kWarpgroup; ++i)
      CHECK(std::isnan(out[static_cast<size_t>(i)]) && out[static_cast<size_t>(kWarpgroup + i)] == 0);
  });
}

TEST(parts_of_a_block_meet) {
  int votes = 0;
  CHECK(message(meet_in_parts, 1, 128, 1024, 64, &votes).empty());
  CHECK(votes == 64);
  CHECK(says(message(meet_in_parts, 1, 128, 1024, 96, &votes), "an end of waiting at meet"));
  CHECK(says(message(meet_in_parts, 1, 128, 1024, 70, &votes), "whole warps, got"));
}

TEST(registers_are_shared_out_within_the_launch) {
  CHECK(message(share_registers<40, 232>, 1, 384, 1024).empty());
  CHECK(says(message(share_registers<40, 240>, 1, 384, 1024), "the launch's 64512 registers, got 66560"));
  CHECK(says(message(share_registers<42, 232>, 1, 384, 1024), "a multiple of 8, got 42"));
  CHECK(says(message(share_registers<40, 160>, 1, 384, 1024), "no fewer registers than the launch's 168"));
}

TEST(nobody_arrives_at_a_block_that_has_ended) {
  const Status status =
      simt::launch_clusters(2, {"test", "hopper"}, arrive_at_who_has_gone, dim3(2), dim3(1), 2048, nullptr);
  CHECK(says(status.message(), "a block of the cluster that has not ended"));
}

TEST(what_tma_refuses_is_refused) {
  alignas(16) static BFloat16 x[256];
  TensorMap map;
  CHECK(hopper::tensor_map("test", x, 64, 4, 64, &map).ok());
  CHECK(!hopper::tensor_map("test", x + 1, 64, 2, 64, &map).ok());
  CHECK(!hopper::tensor_map("test", x, 60, 4, 60, &map).ok());
  CHECK(!hopper::tensor_map("test", x, 64, 0, 64, &map).ok());
}
