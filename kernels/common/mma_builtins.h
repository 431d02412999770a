// SPDX-License-Identifier: Apache-2.0
// mma.h in the emulator: what the instructions do, by lane, with the mistakes that they punish found.
// Products are summed in float64 and rounded once; the hardware's own order of sums is not published.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/simt_builtins.h"

namespace earnest::simt {
namespace emulator {

template <typename Half>
float half_of(uint32_t packed, int which) {
  return widen(Half{static_cast<uint16_t>(which == 0 ? packed & 0xffffu : packed >> 16)});
}

struct Product {
  float* d;
  const uint32_t *a, *b;
};

// Most of the emulator's time; its bounds are plain to see. Each sum goes along k, in order: eight columns
// are eight sums.
template <typename Half>
__attribute__((no_sanitize("address", "undefined"))) void multiply(void* const* lanes, int count) {
  using Columns = double __attribute__((vector_size(64)));
  double a[16][16];
  Columns b[16], sums[16];
  for (int lane = 0; lane < count; ++lane) {
    const auto* mine = static_cast<const Product*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i)
        a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = half_of<Half>(mine->a[i], half);
      for (int i = 0; i < 2; ++i) b[2 * t + i * 8 + half][g] = half_of<Half>(mine->b[i], half);
    }
    for (int i = 0; i < 4; ++i) sums[g + i / 2 * 8][2 * t + i % 2] = mine->d[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) sums[row] += a[row][k] * b[k];
  for (int lane = 0; lane < count; ++lane) {
    const auto* mine = static_cast<const Product*>(lanes[lane]);
    for (int i = 0; i < 4; ++i)
      mine->d[i] = static_cast<float>(sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2]);
  }
}

struct MatrixRow {
  const void* row;
  uint32_t* r;
  bool transposed;
};

inline void load_matrices(void* const* lanes, int count) {
  uint16_t matrices[4][8][8];
  for (int lane = 0; lane < count; ++lane)
    std::memcpy(matrices[lane / 8][lane % 8], static_cast<const MatrixRow*>(lanes[lane])->row, 16);
  for (int lane = 0; lane < count; ++lane) {
    const auto* mine = static_cast<const MatrixRow*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const auto& m = matrices[i];
      const uint32_t low = mine->transposed ? m[2 * t][g] : m[g][2 * t];
      const uint32_t high = mine->transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
      mine->r[i] = high << 16 | low;
    }
  }
}

inline void check_shared(const char* what, const void* address, size_t bytes) {
  if (!is_shared(address, bytes))
    fail(std::string(what) + " within the block's shared memory", "another address");
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fail(std::string(what) + " aligned to " + std::to_string(bytes) + " bytes", "another address");
}

template <typename Half>
uint32_t multiply_halves(uint32_t x, uint32_t y) {
  uint32_t products = 0;
  for (int which : {0, 1}) {
    Half product;
    narrow(half_of<Half>(x, which) * half_of<Half>(y, which), &product);
    products |= static_cast<uint32_t>(product.bits) << 16 * which;
  }
  return products;
}

}  // namespace emulator

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        emulator::Site site = emulator::Site::current()) {
  emulator::Product mine{d, a, b};
  emulator::meet_warp("mma_16x8x16", 0xffffffffu, &mine, &emulator::multiply<BFloat16>, site);
}

inline void mma_16x8x16_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                emulator::Site site = emulator::Site::current()) {
  emulator::Product mine{d, a, b};
  emulator::meet_warp("mma_16x8x16_float16", 0xffffffffu, &mine, &emulator::multiply<Float16>, site);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emulator::Site site = emulator::Site::current()) {
  emulator::check_shared("the row of ldmatrix_x4", row, 16);
  emulator::MatrixRow mine{row, r, false};
  emulator::meet_warp("ldmatrix_x4", 0xffffffffu, &mine, &emulator::load_matrices, site);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                              emulator::Site site = emulator::Site::current()) {
  emulator::check_shared("the row of ldmatrix_x4_trans", row, 16);
  emulator::MatrixRow mine{row, r, true};
  emulator::meet_warp("ldmatrix_x4_trans", 0xffffffffu, &mine, &emulator::load_matrices, site);
}

inline uint32_t multiply_bfloat16(uint32_t x, uint32_t y) {
  return emulator::multiply_halves<BFloat16>(x, y);
}
inline uint32_t multiply_float16(uint32_t x, uint32_t y) { return emulator::multiply_halves<Float16>(x, y); }

inline void copy_async_16(void* to, const void* from, int bytes = 16) {
  emulator::check_shared("the target of copy_async_16", to, 16);
  if (bytes < 0 || bytes > 16) emulator::fail("0 to 16 bytes for copy_async_16", std::to_string(bytes));
  if (bytes > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulator::fail("the source of copy_async_16 aligned to 16 bytes", "another address");
  emulator::copy_later(to, from, static_cast<size_t>(bytes), 16);
}
inline void copy_async_commit() { emulator::commit_copies(); }
template <int kGroupsLeft>
void copy_async_wait() {
  emulator::wait_for_copies(kGroupsLeft);
}

inline uint32_t pack_bfloat16(float low, float high) {
  BFloat16 halves[2];
  narrow(low, &halves[0]);
  narrow(high, &halves[1]);
  return static_cast<uint32_t>(halves[1].bits) << 16 | halves[0].bits;
}

inline uint32_t pack_float16(float low, float high) {
  Float16 halves[2];
  narrow(low, &halves[0]);
  narrow(high, &halves[1]);
  return static_cast<uint32_t>(halves[1].bits) << 16 | halves[0].bits;
}

}  // namespace earnest::simt
