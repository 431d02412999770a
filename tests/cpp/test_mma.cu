// SPDX-License-Identifier: Apache-2.0
// kernels/common/mma.h against plain products: by hand-placed registers, and by the way of a real kernel
// (cp.async into shared memory, ldmatrix, mma).
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/mma.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"

namespace earnest {
namespace {

constexpr int kM = 16, kN = 8, kK = 16;

std::vector<BFloat16> random_matrix(int size, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<BFloat16> x(size);
  for (auto& value : x) narrow(normal(random), &value);
  return x;
}

// a [16, 16], b [16, 8], d [16, 8], rows one after the other.
__global__ void multiply_by_hand(const BFloat16* a, const BFloat16* b, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](BFloat16 low, BFloat16 high) {
    return static_cast<uint32_t>(high.bits) << 16 | low.bits;
  };
  uint32_t ra[4], rb[2];
  for (int i = 0; i < 4; ++i) {
    const BFloat16* at = a + (g + i % 2 * 8) * kK + 2 * t + i / 2 * 8;
    ra[i] = pair(at[0], at[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const BFloat16* at = b + (2 * t + 8 * i) * kN + g;
    rb[i] = pair(at[0], at[kN]);
  }
  float rd[4];
  for (int i = 0; i < 4; ++i) rd[i] = d[(g + i / 2 * 8) * kN + 2 * t + i % 2];
  simt::mma_16x8x16(rd, ra, rb);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * kN + 2 * t + i % 2] = rd[i];
}

// Two products beside each other: b is [16, 16]. b is read as it lies (k rows), therefore transposed.
__global__ void multiply_from_shared(const BFloat16* a, const BFloat16* b, float* d, bool transposed) {
  const auto tile_a = simt::dynamic_shared<BFloat16>(0, kM * kK),
             tile_b = simt::dynamic_shared<BFloat16>(kM * kK * 2, kK * 16);
  const int lane = static_cast<int>(threadIdx.x);
  simt::copy_async_16(&tile_a[lane * 8], a + lane * 8);
  simt::copy_async_commit();
  simt::copy_async_16(&tile_b[lane * 8], b + lane * 8);
  simt::copy_async_commit();
  simt::copy_async_wait<0>();
  __syncthreads();
  uint32_t ra[4], rb[4];
  // Matrices of a in the order of its registers: rows 0-7, rows 8-15, then the same of columns 8-15.
  simt::ldmatrix_x4(ra, &tile_a[lane % 16 * kK + lane / 16 * 8]);
  if (transposed)
    simt::ldmatrix_x4_trans(rb, &tile_b[lane % 16 * 16 + lane / 16 * 8]);
  else  // b lies as columns: [n, k]
    simt::ldmatrix_x4(rb, &tile_b[(lane % 8 + lane / 16 * 8) * kK + lane / 8 % 2 * 8]);
  for (int half = 0; half < 2; ++half) {
    float rd[4] = {};
    const uint32_t of_half[2] = {rb[half * 2], rb[half * 2 + 1]};
    simt::mma_16x8x16(rd, ra, of_half);
    for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = rd[i];
  }
}

__global__ void copy_in_groups(const int* from, int* out) {
  const auto tile = simt::dynamic_shared<int>(0, 12);
  for (int i = 0; i < 3; ++i) {
    simt::copy_async_16(&tile[4 * i], from + 4 * i, i == 2 ? 8 : 16);
    simt::copy_async_commit();
  }
  simt::copy_async_wait<2>();
  out[0] = tile[0];
  simt::copy_async_wait<0>();
  for (int i = 0; i < 12; ++i) out[i] = tile[i];
}

__global__ void pack(const float* x, uint32_t* out) { *out = simt::pack_bfloat16(x[0], x[1]); }

__global__ void multiply_halves(const uint32_t* x, uint32_t* out) {
  out[0] = simt::multiply_bfloat16(x[0], x[1]);
  out[1] = simt::multiply_float16(x[2], x[3]);
}

Status run(const char* name, auto kernel, int threads, size_t shared_bytes, auto... arguments) {
  return simt::launch({"test", name}, kernel, 1, threads, shared_bytes, nullptr, arguments...);
}

}  // namespace

TEST(the_product_of_registers_placed_by_hand) {
  const auto a = random_matrix(kM * kK, 1), b = random_matrix(kK * kN, 2);
  std::vector<float> d(kM * kN);
  for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>(i) * 0.1f;
  OnDevice<BFloat16> da(a), db(b);
  OnDevice<float> dd(d);
  CHECK(run("by_hand", multiply_by_hand, 32, 0, da.data(), db.data(), dd.data()).ok());
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      double sum = d[m * kN + n];
      for (int k = 0; k < kK; ++k) sum += static_cast<double>(widen(a[m * kK + k])) * widen(b[k * kN + n]);
      CHECK_NEAR(dd.values()[m * kN + n], sum, 1e-5);
    }
  }
}

namespace {

// Rows 0 of a and columns 0 of b, of numbers that bfloat16 cannot hold.
__global__ void multiply_float16(const float* x, float* d, uint32_t* packed) {
  uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x == 0) {
    a[0] = b[0] = *packed = simt::pack_float16(x[0], x[1]);
  }
  float sums[4] = {1, 0, 0, 0};
  simt::mma_16x8x16_float16(sums, a, b);
  if (threadIdx.x == 0) *d = sums[0];
}

}  // namespace

TEST(the_product_of_float16) {
  const float low = 1.0f + 1.0f / 1024, high = -3.0f - 3.0f / 512;
  OnDevice<float> x(std::vector<float>{low, high}), d(std::vector<float>{0});
  OnDevice<uint32_t> packed(std::vector<uint32_t>{0});
  CHECK(run("float16", multiply_float16, 32, 0, x.data(), d.data(), packed.data()).ok());
  CHECK(packed.values()[0] == 0xc2033c01u);
  CHECK(d.values()[0] == 1 + low * low + high * high);
}

// Widening all of them and rounding back, and to even between two; as the definition says for a few.
TEST(float16_is_widened_and_rounded) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 x{static_cast<uint16_t>(bits)};
    const float wide = widen(x);
    Float16 back;
    narrow(wide, &back);
    const bool nan = (bits & 0x7fffu) > 0x7c00u;
    CHECK(nan ? std::isnan(wide) && (back.bits & 0x7fffu) > 0x7c00u : back.bits == bits);
    const Float16 next{static_cast<uint16_t>(bits + 1)};
    if ((bits & 0x7fffu) < 0x7bffu) {
      narrow((wide + widen(next)) / 2, &back);
      CHECK(back.bits == (bits & 1 ? bits + 1 : bits));
    }
  }
  CHECK(widen(Float16{0x3c00}) == 1 && widen(Float16{1}) == 0x1p-24f && widen(Float16{0x7bff}) == 65504);
  CHECK(std::isinf(widen(Float16{0xfc00})));
  Float16 x;
  for (const auto& [value, bits] : {std::pair{65519.0f, 0x7bff},
                                    {65520.0f, 0x7c00},
                                    {-1e30f, 0xfc00},
                                    {0x1p-25f, 0x0000},
                                    {0x1.8p-25f, 0x0001},
                                    {-0.0f, 0x8000}}) {
    narrow(value, &x);
    CHECK(x.bits == bits);
  }
}

TEST(the_product_by_way_of_shared_memory) {
  const auto a = random_matrix(kM * kK, 3), b = random_matrix(16 * 16, 4);
  OnDevice<BFloat16> da(a), db(b);
  for (const bool transposed : {false, true}) {
    OnDevice<float> dd(std::vector<float>(16 * 16));
    CHECK(
        run("from_shared", multiply_from_shared, 32, 1024, da.data(), db.data(), dd.data(), transposed).ok());
    const std::vector<float> found = dd.values();
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        double sum = 0.0;
        for (int k = 0; k < kK; ++k)
          sum +=
              static_cast<double>(widen(a[m * kK + k])) * widen(transposed ? b[k * 16 + n] : b[n * kK + k]);
        CHECK_NEAR(found[m * 16 + n], sum, 1e-5);
      }
    }
  }
}

TEST(copies_fill_with_zeros_and_wait_by_group) {
  std::vector<int> in(12);
  for (int i = 0; i < 12; ++i) in[i] = i + 1;
  OnDevice<int> from(in), out(std::vector<int>(12, -5));
  CHECK(run("copy", copy_in_groups, 1, 48, from.data(), out.data()).ok());
  CHECK((out.values() == std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0}));
}

TEST(two_numbers_are_packed_low_first_and_rounded_to_even) {
  OnDevice<float> x(std::vector<float>{1.0f + 1.0f / 256, -2.0f - 3.0f / 128});
  OnDevice<uint32_t> out(std::vector<uint32_t>{0});
  CHECK(run("pack", pack, 1, 0, x.data(), out.data()).ok());
  CHECK(out.values()[0] == 0xc0023f80u);
}

TEST(halves_are_multiplied_and_subnormal_numbers_count) {
  // -2^-129 times 2^120 and 1.5 times 1.5; of float16 -2^-20 times 2^8 and the same.
  OnDevice<uint32_t> x(std::vector<uint32_t>{0x80103fc0u, 0x7b803fc0u, 0x80103e00u, 0x5c003e00u});
  OnDevice<uint32_t> out(std::vector<uint32_t>{0, 0});
  CHECK(run("multiply", multiply_halves, 1, 0, x.data(), out.data()).ok());
  CHECK(out.values()[0] == 0xbb004010u);  // -2^-9, 2.25
  CHECK(out.values()[1] == 0x8c004080u);  // -2^-12, 2.25
}

#if defined(EARNEST_EMULATED)
namespace {

__global__ void read_before_waiting(const int* from, int* out) {
  const auto tile = simt::dynamic_shared<int>(0, 4);
  simt::copy_async_16(&tile[0], from);
  simt::copy_async_commit();
  out[0] = tile[0];
  simt::copy_async_wait<0>();
}
__global__ void load_from_elsewhere(const BFloat16* x) {
  uint32_t r[4];
  simt::ldmatrix_x4(r, x);
}
__global__ void load_unaligned() {
  uint32_t r[4];
  simt::ldmatrix_x4(r, &simt::dynamic_shared<BFloat16>(0, 64)[threadIdx.x == 5 ? 4 : 0]);
}
__global__ void multiply_with_half_a_warp() {
  float d[4] = {};
  uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 16) simt::mma_16x8x16(d, a, b);
}

}  // namespace

TEST(mistakes_with_tensor_cores_are_found) {
  alignas(16) const int from[4] = {1, 2, 3, 4};
  int out = 0;
  CHECK(run("early", read_before_waiting, 1, 16, &from[0], &out).ok());
  CHECK(out == -1);  // the poison that was there
  const BFloat16 x[8] = {};
  CHECK(run("elsewhere", load_from_elsewhere, 32, 16, &x[0])
            .message()
            .find("within the block's shared memory") != std::string::npos);
  CHECK(run("unaligned", load_unaligned, 32, 128)
            .message()
            .find("thread (5, 0, 0): expected the row of ldmatrix_x4 aligned") != std::string::npos);
  CHECK(
      run("half", multiply_with_half_a_warp, 32, 0).message().find("every lane of its mask at mma_16x8x16") !=
      std::string::npos);
}
#endif

}  // namespace earnest
