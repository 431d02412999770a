// SPDX-License-Identifier: Apache-2.0
// hopper_turns.h for nvcc, in PTX.
#pragma once

#include "kernels/common/hopper_products.h"

namespace earnest::hopper {

__device__ inline void load_bytes(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ inline void store_bytes(void* to, const void* from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ inline void add_floats(float* to, const void* from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
__device__ inline void close_copies() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ inline void wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ inline void wait_written() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Reads and writes of memory by TMA and by threads, before and after, keep their order.
__device__ inline void fence_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }

__device__ inline void wait_turn(const uint32_t* turns, uint32_t turn) {
  while (simt::load_acquire(turns) < turn) simt::pause();
  fence_copies();
}
__device__ inline void pass_turn(uint32_t* turns) {
  fence_copies();
  __threadfence();
  atomicAdd(turns, 1u);
}

#define EARNEST_SUMS(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define EARNEST_PRODUCT(Half, kind)                                                                        \
  __device__ inline void multiply_transposed(float (&d)[8][4], uint64_t a, uint64_t b, Half) {             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." kind "." kind                               \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, "   \
                 "1, 1;"                                                                                   \
                 : EARNEST_SUMS(0), EARNEST_SUMS(1), EARNEST_SUMS(2), EARNEST_SUMS(3), EARNEST_SUMS(4),    \
                   EARNEST_SUMS(5), EARNEST_SUMS(6), EARNEST_SUMS(7)                                       \
                 : "l"(a), "l"(b));                                                                        \
  }

EARNEST_PRODUCT(BFloat16, "bf16")
EARNEST_PRODUCT(Float16, "f16")

#undef EARNEST_PRODUCT
#undef EARNEST_SUMS

}  // namespace earnest::hopper
