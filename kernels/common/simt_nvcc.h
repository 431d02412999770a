// SPDX-License-Identifier: Apache-2.0
// What simt.h promises, under nvcc: CUDA's own names, and ours in terms of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <utility>

#include "kernels/common/status.h"

#define EARNEST_SHARED(T, name, size) __shared__ T name[size]

namespace earnest::simt {

template <typename T>
using Shared = T*;

template <typename T>
__device__ __forceinline__ Shared<T> dynamic_shared(size_t offset, size_t /*count*/) {
  extern __shared__ __align__(1024) unsigned char earnest_dynamic_shared[];
  return reinterpret_cast<T*>(earnest_dynamic_shared + offset);
}

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(uint32_t* address, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void pause() { __nanosleep(20); }

struct Label {
  const char* op;
  const char* kernel;
};

// On the current device, all that a block can have beside what the kernel declares. Unasked it has 48 KB,
// those of the kernel's own among them. The limit is the function's: set once, and never lowered, no thread
// takes from another what that one is about to launch with.
cudaError_t allow_shared_memory(const void* kernel);

template <typename... P, typename... A>
Status launch_clusters(unsigned cluster, const Label& label, void (*kernel)(P...), dim3 grid, dim3 block,
                       size_t shared_bytes, void* stream, A&&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 0) error = allow_shared_memory(reinterpret_cast<const void*>(kernel));
  if (error == cudaSuccess) {
    cudaLaunchAttribute in_clusters = {};
    in_clusters.id = cudaLaunchAttributeClusterDimension;
    in_clusters.val.clusterDim.x = cluster, in_clusters.val.clusterDim.y = in_clusters.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &in_clusters, config.numAttrs = cluster > 1 ? 1 : 0;
    error = cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...);
  }
  const cudaError_t told = cudaGetLastError();  // it has been told
  if (error == cudaSuccess) error = told;
  if (error == cudaSuccess) return {};
  return Status(StatusCode::kInternal, "[" + std::string(label.op) + "] kernel " + label.kernel +
                                           ": expected a launch of " + std::to_string(grid.x) + " x " +
                                           std::to_string(grid.y) + " x " + std::to_string(grid.z) +
                                           " blocks of " + std::to_string(block.x * block.y * block.z) +
                                           " threads with " + std::to_string(shared_bytes) +
                                           " bytes of shared memory, got " + cudaGetErrorString(error));
}

template <typename... P, typename... A>
Status launch(const Label& label, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
              void* stream, A&&... arguments) {
  return launch_clusters(1, label, kernel, grid, block, shared_bytes, stream, std::forward<A>(arguments)...);
}

}  // namespace earnest::simt
