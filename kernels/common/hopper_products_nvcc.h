// SPDX-License-Identifier: Apache-2.0
// hopper_products.h in PTX.
#pragma once

#include <cstdint>

namespace earnest::hopper {

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroupsLeft>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
}
template <int J>
__device__ inline void settle(float (&sums)[J][4]) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[j][i])::"memory");
  }
}
template <int K, int N>
__device__ inline void keep(const uint32_t (&operands)[K][N]) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" ::"r"(operands[k][i]) : "memory");
  }
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
  }                                                                                                 \
  __device__ inline void multiply_rows(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, Half,  \
                                       bool adds) {                                                 \
    asm volatile(                                                                                   \
        "{\n.reg .pred adds;\nsetp.ne.s32 adds, %37, 0;\n"                                          \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." kind "." kind " {" EARNEST_NAMES_32           \
        "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n}"                                           \
        : EARNEST_SUMS_8(0)                                                                         \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds ? 1 : 0));                   \
  }                                                                                                 \
  __device__ inline void multiply_rows(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, Half, \
                                       bool adds) {                                                 \
    asm volatile(                                                                                   \
        "{\n.reg .pred adds;\nsetp.ne.s32 adds, %69, 0;\n"                                          \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." kind "." kind " {" EARNEST_NAMES_64          \
        "}, {%64, %65, %66, %67}, %68, adds, 1, 1, 0;\n}"                                           \
        : EARNEST_SUMS_8(0), EARNEST_SUMS_8(8)                                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds ? 1 : 0));                   \
  }

EARNEST_PRODUCTS(BFloat16, "bf16")
EARNEST_PRODUCTS(Float16, "f16")

#define EARNEST_SUMS_4(j) EARNEST_SUMS(j), EARNEST_SUMS(j + 1), EARNEST_SUMS(j + 2), EARNEST_SUMS(j + 3)

template <bool kATransposed, bool kBTransposed>
__device__ inline void multiply_64x256x16(float (&d)[32][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, 1, 1, 1, %130, %131;"
      : EARNEST_SUMS_4(0), EARNEST_SUMS_4(4), EARNEST_SUMS_4(8), EARNEST_SUMS_4(12), EARNEST_SUMS_4(16),
        EARNEST_SUMS_4(20), EARNEST_SUMS_4(24), EARNEST_SUMS_4(28)
      : "l"(a), "l"(b), "n"(static_cast<int>(kATransposed)), "n"(static_cast<int>(kBTransposed)));
}

#undef EARNEST_PRODUCTS
#undef EARNEST_SUMS_4
#undef EARNEST_NAMES_64
#undef EARNEST_NAMES_32
#undef EARNEST_SUMS_8
#undef EARNEST_SUMS

}  // namespace earnest::hopper
