// SPDX-License-Identifier: Apache-2.0
// More of hopper.h's products by a warpgroup, of bfloat16 and float16: narrow ones, and those whose left
// operand lies in registers as the sums of another product do. Only for nvcc. Right operands: boxes of
// hopper_layout.h.
//
//   multiply_64x64x16(d, a, b, T{})   d [64, 64] += a [64, 16] b [64, 16]^T, both as they are, by descriptors
//   multiply_by(d, a, b, T{})         d [64, 64 or 128] += a [64, 16] b [16, 64 or 128], a in registers as
//                                     mma_16x8x16 wants it (mma.h), a warp's 16 rows each; b transposed
#pragma once

#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/hopper.h"

namespace earnest::hopper {

// A warpgroup's writes to shared memory are seen by its products (and TMA) after this and a barrier.
__device__ inline void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// `threads` of the block meet at one of its sixteen barriers; 0 is that of __syncthreads.
__device__ inline void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline bool meet_or(int barrier, int threads, bool vote) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred mine, all;\n"
      "setp.ne.s32 mine, %3, 0;\n"
      "bar.red.or.pred all, %1, %2, mine;\n"
      "selp.s32 %0, 1, 0, all;\n"
      "}"
      : "=r"(any)
      : "r"(barrier), "r"(threads), "r"(vote ? 1 : 0)
      : "memory");
  return any != 0;
}

#define EARNEST_SUMS(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define EARNEST_SUMS_8(j)                                                                              \
  EARNEST_SUMS(j), EARNEST_SUMS(j + 1), EARNEST_SUMS(j + 2), EARNEST_SUMS(j + 3), EARNEST_SUMS(j + 4), \
      EARNEST_SUMS(j + 5), EARNEST_SUMS(j + 6), EARNEST_SUMS(j + 7)
#define EARNEST_NAMES_32                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define EARNEST_NAMES_64                                                               \
  EARNEST_NAMES_32                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define EARNEST_PRODUCTS(Half, kind)                                                                \
  __device__ inline void multiply_64x64x16(float (&d)[8][4], uint64_t a, uint64_t b, Half) {        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." kind "." kind " {" EARNEST_NAMES_32  \
                 "}, %32, %33, 1, 1, 1, 0, 0;"                                                      \
                 : EARNEST_SUMS_8(0)                                                                \
                 : "l"(a), "l"(b));                                                                 \
  }                                                                                                 \
  __device__ inline void multiply_by(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, Half) {  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." kind "." kind " {" EARNEST_NAMES_32  \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                        \
                 : EARNEST_SUMS_8(0)                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                             \
  }                                                                                                 \
  __device__ inline void multiply_by(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, Half) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." kind "." kind " {" EARNEST_NAMES_64 \
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                        \
                 : EARNEST_SUMS_8(0), EARNEST_SUMS_8(8)                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                             \
  }

EARNEST_PRODUCTS(BFloat16, "bf16")
EARNEST_PRODUCTS(Float16, "f16")

#undef EARNEST_PRODUCTS
#undef EARNEST_NAMES_64
#undef EARNEST_NAMES_32
#undef EARNEST_SUMS_8
#undef EARNEST_SUMS

}  // namespace earnest::hopper
