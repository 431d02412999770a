// SPDX-License-Identifier: Apache-2.0
// Hopper's own instructions (sm_90a), only for nvcc: barriers in shared memory, copies by TMA, products by a
// warpgroup (wgmma), clusters of blocks. Names of the PTX ISA stand in the code. hopper_layout.h says how
// operands lie.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "kernels/common/hopper_layout.h"
#include "kernels/common/mma.h"
#include "kernels/common/status.h"

namespace earnest::hopper {

using simt::shared_address;
using TensorMap = CUtensorMap;

// ---- barriers ----
// A barrier's phase ends when as many have arrived as it was made for and all bytes it was told of are there.
// Phases alternate in parity, from 0. wait(parity) returns once the phase of that parity has ended: for a new
// barrier, parity 1 is that of the phase before the first, so it returns at once.

struct alignas(8) Barrier {
  uint64_t state;
};

__device__ inline void init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
// After init, before other blocks of the cluster or TMA see the barriers.
__device__ inline void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive_expecting(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// At the same barrier of the cluster's block `rank`, which may be the caller's own.
__device__ inline void arrive_at(Barrier* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
__device__ inline void wait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- clusters ----

__device__ inline int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster meet.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// ---- copies by TMA ----
// One box of a matrix: (inner, outer) is its first number, inner along the lines in memory. What lies outside
// the matrix is 0. All bytes of the box, those too, are counted at `barrier`.

__device__ inline void load_box(void* to, const CUtensorMap& matrix, int inner, int outer, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&matrix), "r"(shared_address(barrier)), "r"(inner), "r"(outer)
      : "memory");
}
// The same into all blocks of the cluster in `mask`, at the same place of each, counted at the same barrier
// of each.
__device__ inline void load_box_for(uint16_t mask, void* to, const CUtensorMap& matrix, int inner, int outer,
                                    Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(&matrix), "r"(shared_address(barrier)), "r"(inner), "r"(outer), "h"(mask)
      : "memory");
}

// A row-major bfloat16 matrix [outer, inner] for load_box. The address and `pitch` (elements from row to row)
// must be multiples of 16 bytes. The driver makes it; its function is asked for at run time, so nothing links
// to libcuda.
inline Status tensor_map(const char* op, const void* data, int64_t inner, int64_t outer, int64_t pitch,
                         CUtensorMap* map) {
  const auto failed = [op](const std::string& got) {
    return Status(StatusCode::kInternal, "[" + std::string(op) + "] tensor map: expected one, got " + got);
  };
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return failed("a driver that makes none");
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(inner), static_cast<cuuint64_t>(outer)};
  const cuuint64_t pitches[1] = {static_cast<cuuint64_t>(pitch) * 2};
  const cuuint32_t box[2] = {kBox, kBox}, steps[2] = {1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, pitches, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return failed("the driver's error " + std::to_string(static_cast<int>(result)));
}

// ---- products by a warpgroup ----
// Registers of a product under way belong to it. begin_products: the warpgroup's registers are as written.
// close_products puts all products since the last one into a group; wait_products<n>: until at most the last
// n groups are under way. settle tells the compiler that the sums have changed: it stands between the wait
// and their use.

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

// A warpgroup takes registers from, or leaves them to, the others of its block.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define EARNEST_SUMS(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define EARNEST_SUMS_4(j) EARNEST_SUMS(j), EARNEST_SUMS(j + 1), EARNEST_SUMS(j + 2), EARNEST_SUMS(j + 3)

// d [64, 256] += a [64, 16] b [256, 16]^T, by descriptors. Warp w of the warpgroup holds rows 16 w to 16 w +
// 15, as mma_16x8x16 (mma.h) lays out each 8 columns.
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

#undef EARNEST_SUMS_4
#undef EARNEST_SUMS

}  // namespace earnest::hopper
