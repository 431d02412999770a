// SPDX-License-Identifier: Apache-2.0
// Hopper's instructions (kernels/common/hopper.h) one at a time, on a GPU and in the emulator, against the
// PTX ISA written down a second time: where a box lies, what a product computes, in what order sums are
// added. Where a GPU disagrees, it is said here first, and plainest.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/hopper_turns.h"
#include "tests/cpp/hopper_boxes.h"
#include "tests/cpp/on_device.h"

namespace earnest {
namespace {

// ---- boxes ----

__global__ void bring_one(const __grid_constant__ TensorMap matrix, int inner, int outer, uint16_t* out) {
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
__global__ void bring_for_both(const __grid_constant__ TensorMap matrix, uint16_t* out) {
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
__global__ void multiply(const __grid_constant__ TensorMap left, const __grid_constant__ TensorMap right,
                         const BFloat16* a, float* d) {
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
    } else if constexpr (kColumns == 64 && kLeft) {
      hopper::multiply_transposed(sums, of_left, of_right, BFloat16{});
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
  OnDevice<BFloat16> rows(a), left(kLeft ? transposed(a, 64) : a), right(kRight ? transposed(b, 64) : b);
  OnDevice<float> out(std::vector<float>(64 * kColumns));
  const std::string text =
      message(multiply<kColumns, kLeft, kRight, kFromRegisters>, 1, kWarpgroup, shared_for(1 + kColumns / 64),
              map_of(left.data(), a.size(), 64), map_of(right.data(), b.size(), kRight ? kColumns : 64),
              rows.data(), out.data());
  CHECK(text.empty());
  if (!text.empty()) std::printf("  %s\n", text.c_str());
  const std::vector<float> d = out.values();
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

// ---- turns ----

constexpr int kNumbers = 64;

// Every block adds numbers to the same ones, in the order in which blocks begin; the first writes. turns[1]
// counts who has begun.
__global__ void add_in_turns(const float* numbers, float* sums, uint32_t* turns) {
  EARNEST_SHARED(uint32_t, turn, 1);
  const auto mine = simt::dynamic_shared<float>(0, kNumbers);
  if (threadIdx.x == 0) turn[0] = atomicAdd(turns + 1, 1u);
  __syncthreads();
  mine[threadIdx.x] = numbers[turn[0] * kNumbers + threadIdx.x];
  hopper::fence_shared();
  __syncthreads();
  if (threadIdx.x != 0) return;
  hopper::wait_turn(turns, turn[0]);
  if (turn[0] == 0) {
    hopper::store_bytes(sums, &mine[0], kNumbers * sizeof(float));
  } else {
    hopper::add_floats(sums, &mine[0], kNumbers * sizeof(float));
  }
  hopper::close_copies();
  hopper::wait_written();
  hopper::pass_turn(turns);
}

}  // namespace

TEST(a_box_lies_swizzled_by_its_address_and_is_0_outside) {
  const auto x = random_numbers(96 * 80, 5);  // 80 lines of 96
  OnDevice<BFloat16> matrix(x);
  for_each_arrival([&] {
    for (const auto& [inner, outer] : {std::pair{0, 0}, {64, 0}, {64, 40}, {-8, -3}, {0, 200}}) {
      OnDevice<uint16_t> brought(std::vector<uint16_t>(kBoxBytes / 2));
      CHECK(message(bring_one, 1, 32, shared_for(1), map_of(matrix.data(), x.size(), 96), inner, outer,
                    brought.data())
                .empty());
      const std::vector<uint16_t> out = brought.values();
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
  OnDevice<BFloat16> matrix(x);
  const TensorMap map = map_of(matrix.data(), x.size(), 64);
  for_each_arrival([&] {
    OnDevice<uint16_t> brought(std::vector<uint16_t>(2 * kBoxBytes)),
        alone(std::vector<uint16_t>(kBoxBytes / 2));
    const Status status = simt::launch_clusters(2, {"test", "hopper"}, bring_for_both, dim3(4), dim3(32),
                                                shared_for(2), nullptr, map, brought.data());
    CHECK(status.ok());
    if (!status.ok()) std::printf("  %s\n", status.message().c_str());
    const std::vector<uint16_t> out = brought.values();
    for (int half = 0; half < 2; ++half) {
      CHECK(message(bring_one, 1, 32, shared_for(1), map, 0, 64 * half, alone.data()).empty());
      const std::vector<uint16_t> one = alone.values();
      for (int block = 0; block < 2; ++block)
        CHECK(std::equal(one.begin(), one.end(), out.begin() + (2 * block + half) * kBoxBytes / 2));
    }
  });
}

TEST(products_are_those_of_the_matrices) {
  for_each_arrival([] {
    compare_product<64, false, false>();
    compare_product<64, true, true>();
    compare_product<64, false, true, true>();
    compare_product<128, false, true, true>();
    compare_product<256, false, false>();
    compare_product<256, false, true>();
    compare_product<256, true, false>();
    compare_product<256, true, true>();
  });
}

TEST(sums_are_added_in_the_order_of_turns) {
  constexpr size_t kBlocks = 96;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> power(-6, 6);
  std::vector<float> numbers(kBlocks * kNumbers), wanted(kNumbers);
  for (float& number : numbers) number = normal(random) * std::pow(10.0f, power(random));
  for (size_t i = 0; i < numbers.size(); ++i) wanted[i % kNumbers] += numbers[i];
  OnDevice<float> given(numbers);
  for_each_arrival([&] {
    for (int again = 0; again < 5; ++again) {
      OnDevice<float> sums(std::vector<float>(kNumbers, NAN));
      OnDevice<uint32_t> turns(std::vector<uint32_t>(2));
      const std::string text = message(add_in_turns, kBlocks, kNumbers, kNumbers * sizeof(float),
                                       given.data(), sums.data(), turns.data());
      CHECK(text.empty());
      if (!text.empty()) std::printf("  %s\n", text.c_str());
      CHECK(sums.values() == wanted);
      CHECK(turns.values()[0] == kBlocks);
    }
  });
}

}  // namespace earnest
