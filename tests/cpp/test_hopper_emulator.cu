// SPDX-License-Identifier: Apache-2.0
// What the emulator makes of Hopper's instructions, against the PTX ISA written down a second time: where a
// box lies, when a phase ends, what a product computes; and that each mistake is found and named.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/hopper_products.h"
#include "tests/cpp/check.h"

using namespace earnest;

namespace {

using hopper::Barrier;
using hopper::kBoxBytes;
using hopper::TensorMap;
using simt::Arrival;

constexpr int kWarpgroup = 128;

template <typename... P, typename... A>
std::string message(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... arguments) {
  return simt::launch({"test", "hopper"}, kernel, grid, block, shared_bytes, nullptr, arguments...).message();
}
bool says(const std::string& message, const std::string& part) {
  const bool found = message.find(part) != std::string::npos;
  if (!found) std::printf("  '%s' lacks '%s'\n", message.c_str(), part.c_str());
  return found;
}

// The first byte of dynamic shared memory on a multiple of 1024.
unsigned char* boxes(size_t bytes) {
  const auto shared = simt::dynamic_shared<unsigned char>(0, bytes + 1024);
  return &shared[(1024 - simt::shared_address(shared) % 1024) % 1024];
}
Barrier* barrier_behind(unsigned char* boxes, int count) {
  return reinterpret_cast<Barrier*>(boxes + count * kBoxBytes);
}
constexpr size_t shared_for(int count) { return static_cast<size_t>(count) * kBoxBytes + 64 + 1024; }

std::vector<BFloat16> random_numbers(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<BFloat16> x(count);
  for (auto& value : x) narrow(normal(random), &value);
  return x;
}
TensorMap map_of(const std::vector<BFloat16>& x, int64_t inner) {
  TensorMap map;
  const auto outer = static_cast<int64_t>(x.size()) / inner;
  CHECK(hopper::tensor_map("test", x.data(), inner, outer, inner, &map).ok());
  return map;
}

// ---- boxes ----

__global__ void bring_one(const TensorMap matrix, int inner, int outer, uint16_t* out) {
  unsigned char* const box = boxes(kBoxBytes + 64);
  Barrier* const there = barrier_behind(box, 1);
  if (threadIdx.x != 0) return;
  hopper::init(there, 1);
  hopper::fence_init();
  hopper::arrive_expecting(there, kBoxBytes);
  hopper::load_box(box, matrix, inner, outer, there);
  hopper::wait(there, 0);
  std::memcpy(out, box, kBoxBytes);
}

// Both blocks bring half into both; counts run ahead of who tells of them.
__global__ void bring_for_both(const TensorMap matrix, uint16_t* out) {
  unsigned char* const box = boxes(2 * kBoxBytes + 64);
  Barrier* const there = barrier_behind(box, 2);
  const int rank = hopper::cluster_rank();
  if (threadIdx.x == 0) {
    hopper::init(there, 1);
    hopper::fence_init();
  }
  hopper::cluster_sync();
  if (threadIdx.x == 0) {
    hopper::load_box_for(0b11, box + rank * kBoxBytes, matrix, 0, 64 * rank, there);
    for (int i = 0; i < 20 * rank; ++i) simt::pause();
    hopper::arrive_expecting(there, 2 * kBoxBytes);
    hopper::wait(there, 0);
    std::memcpy(out + rank * kBoxBytes, box, 2 * kBoxBytes);
  }
  hopper::cluster_sync();
}

// ---- products ----

// d [64, columns] = 0.5 + a b over a depth of 64: operands as boxes, each as it is or transposed.
template <int kColumns, bool kLeft, bool kRight, bool kFromRegisters>
__global__ void multiply(const TensorMap left, const TensorMap right, const BFloat16* a, float* d) {
  constexpr int kBoxes = 1 + kColumns / 64;
  unsigned char* const box = boxes(kBoxes * kBoxBytes + 64);
  Barrier* const there = barrier_behind(box, kBoxes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, row = thread / 32 * 16 + lane / 4;
  if (thread == 0) {
    hopper::init(there, 1);
    hopper::fence_init();
    hopper::arrive_expecting(there, kBoxes * kBoxBytes);
    hopper::load_box(box, left, 0, 0, there);
    for (int i = 0; i < kColumns / 64; ++i)
      hopper::load_box(box + (1 + i) * kBoxBytes, right, kRight ? 64 * i : 0, kRight ? 0 : 64 * i, there);
  }
  __syncthreads();
  hopper::wait(there, 0);
  float sums[kColumns / 8][4];
  uint32_t in_registers[4][4];
  for (auto& of_eight : sums)
    for (float& sum : of_eight) sum = 0.5f;
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 4; ++i) {
      const BFloat16* const at = a + (row + i % 2 * 8) * 64 + 16 * k + i / 2 * 8 + lane % 4 * 2;
      in_registers[k][i] = static_cast<uint32_t>(at[1].bits) << 16 | at[0].bits;
    }
  }
  hopper::begin_products();
  for (int k = 0; k < 4; ++k) {
    const uint32_t address = simt::shared_address(box);
    const uint64_t of_left = hopper::descriptor(address + hopper::operand_offset(kLeft, 0, 16 * k));
    const uint64_t of_right =
        hopper::descriptor(address + kBoxBytes + hopper::operand_offset(kRight, 0, 16 * k));
    if constexpr (kFromRegisters) {
      hopper::multiply_by(sums, in_registers[k], of_right, BFloat16{});
    } else if constexpr (kColumns == 64) {
      hopper::multiply_64x64x16(sums, of_left, of_right, BFloat16{});
    } else {
      hopper::multiply_64x256x16<kLeft, kRight>(sums, of_left, of_right);
    }
  }
  hopper::close_products();
  hopper::wait_products<0>();
  for (int j = 0; j < kColumns / 8; ++j)
    for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * kColumns + 8 * j + lane % 4 * 2 + i % 2] = sums[j][i];
}

std::vector<BFloat16> transposed(const std::vector<BFloat16>& x, size_t width) {
  std::vector<BFloat16> result(x.size());
  for (size_t i = 0; i < x.size(); ++i) result[i % width * (x.size() / width) + i / width] = x[i];
  return result;
}

template <int kColumns, bool kLeft, bool kRight, bool kFromRegisters = false>
void compare_product() {
  const auto a = random_numbers(64 * 64, 1), b = random_numbers(kColumns * 64, 2);
  const auto left = kLeft ? transposed(a, 64) : a, right = kRight ? transposed(b, 64) : b;
  std::vector<float> d(64 * kColumns);
  const std::string text =
      message(multiply<kColumns, kLeft, kRight, kFromRegisters>, 1, kWarpgroup, shared_for(1 + kColumns / 64),
              map_of(left, 64), map_of(right, kRight ? kColumns : 64), a.data(), d.data());
  CHECK(text.empty());
  if (!text.empty()) std::printf("  %s\n", text.c_str());
  int wrong = 0;
  for (size_t row = 0; row < 64; ++row) {
    for (size_t column = 0; column < kColumns; ++column) {
      double sum = 0.5;
      for (size_t k = 0; k < 64; ++k)
        sum += static_cast<double>(widen(a[row * 64 + k])) * widen(b[column * 64 + k]);
      wrong += !(std::abs(d[row * kColumns + column] - sum) < 1e-4);
    }
  }
  CHECK(wrong == 0);
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

template <typename Each>
void for_each_arrival(const Each& each) {
  for (const Arrival arrival : {Arrival::kEarly, Arrival::kMixed, Arrival::kLate}) {
    simt::set_arrival(arrival);
    each();
  }
  simt::set_arrival(Arrival::kDrawn);
}

}  // namespace

TEST(a_box_lies_swizzled_by_its_address_and_is_0_outside) {
  const auto x = random_numbers(96 * 80, 5);  // 80 lines of 96
  for_each_arrival([&] {
    for (const auto& [inner, outer] : {std::pair{0, 0}, {64, 0}, {64, 40}, {-8, -3}, {0, 200}}) {
      std::vector<uint16_t> out(kBoxBytes / 2);
      CHECK(message(bring_one, 1, 32, shared_for(1), map_of(x, 96), inner, outer, out.data()).empty());
      int wrong = 0;
      for (int line = 0; line < 64; ++line) {
        for (int i = 0; i < 64; ++i) {
          const int row = outer + line, column = inner + i;
          const bool within = row >= 0 && row < 80 && column >= 0 && column < 96;
          const int wanted = within ? x[static_cast<size_t>(row * 96 + column)].bits : 0;
          wrong += out[static_cast<size_t>(line * 64 + ((i / 8) ^ (line % 8)) * 8 + i % 8)] != wanted;
        }
      }
      CHECK(wrong == 0);
    }
  });
}

TEST(a_box_for_a_cluster_reaches_both_and_counts_at_both) {
  const auto x = random_numbers(64 * 128, 6);
  for_each_arrival([&] {
    std::vector<uint16_t> out(2 * kBoxBytes), one(kBoxBytes / 2);
    const Status status = simt::launch_clusters(2, {"test", "hopper"}, bring_for_both, dim3(4), dim3(32),
                                                shared_for(2), nullptr, map_of(x, 64), out.data());
    CHECK(status.ok());
    if (!status.ok()) std::printf("  %s\n", status.message().c_str());
    for (size_t half = 0; half < 2; ++half) {
      CHECK(
          message(bring_one, 1, 32, shared_for(1), map_of(x, 64), 0, static_cast<int>(64 * half), one.data())
              .empty());
      for (size_t block = 0; block < 2; ++block)
        CHECK(std::equal(one.begin(), one.end(), out.begin() + (2 * block + half) * kBoxBytes / 2));
    }
  });
}

TEST(products_are_those_of_the_matrices) {
  for_each_arrival([] {
    compare_product<64, false, false>();
    compare_product<64, false, true, true>();
    compare_product<128, false, true, true>();
    compare_product<256, false, false>();
    compare_product<256, false, true>();
    compare_product<256, true, false>();
    compare_product<256, true, true>();
  });
}

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
