// SPDX-License-Identifier: Apache-2.0
// What tests of Hopper's own instructions (kernels/common/hopper.h) share: boxes in shared memory, and
// launches in which copies and products come as early, and as late, as they may.
#pragma once

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/hopper_products.h"
#include "tests/cpp/check.h"

namespace earnest {

using hopper::Barrier;
using hopper::kBoxBytes;
using hopper::TensorMap;

constexpr int kWarpgroup = 128;

template <typename... P, typename... A>
std::string message(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A... arguments) {
  return simt::launch({"test", "hopper"}, kernel, grid, block, shared_bytes, nullptr, arguments...).message();
}

// The first byte of dynamic shared memory on a multiple of 1024.
__device__ inline unsigned char* boxes(size_t bytes) {
  const auto shared = simt::dynamic_shared<unsigned char>(0, bytes + 1024);
  return &shared[(1024 - simt::shared_address(shared) % 1024) % 1024];
}
__device__ inline Barrier* barrier_behind(unsigned char* boxes, int count) {
  return reinterpret_cast<Barrier*>(boxes + count * kBoxBytes);
}
constexpr size_t shared_for(int count) { return static_cast<size_t>(count) * kBoxBytes + 64 + 1024; }

inline std::vector<BFloat16> random_numbers(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<BFloat16> x(count);
  for (auto& value : x) narrow(normal(random), &value);
  return x;
}

// Of `size` numbers where kernels read them.
inline TensorMap map_of(const BFloat16* x, size_t size, int64_t inner) {
  TensorMap map;
  CHECK(hopper::tensor_map("test", x, inner, static_cast<int64_t>(size) / inner, inner, &map).ok());
  return map;
}

template <typename Each>
void for_each_arrival(const Each& each) {
#if defined(EARNEST_EMULATED)
  for (const auto arrival : {simt::Arrival::kEarly, simt::Arrival::kMixed, simt::Arrival::kLate}) {
    simt::set_arrival(arrival);
    each();
  }
  simt::set_arrival(simt::Arrival::kDrawn);
#else
  each();
#endif
}

}  // namespace earnest
