// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <utility>

#include "kernels/common/simt.h"

namespace earnest::simt {

cudaError_t allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device}) > 0) return cudaSuccess;
  cudaFuncAttributes of = {};
  cudaError_t error = cudaFuncGetAttributes(&of, kernel);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 most - static_cast<int>(of.sharedSizeBytes));
  if (error == cudaSuccess) allowed.insert({kernel, device});
  return error;
}

}  // namespace earnest::simt
