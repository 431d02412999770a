// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <string>

#include "kernels/common/cuda.h"

namespace earnest::cuda {
namespace {

Status status_of(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return {};
  const std::string reason = cudaGetErrorString(error);
  cudaGetLastError();  // it has been told
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver)
    return unsupported(op, "device", "a CUDA device of compute capability 8.0 or more",
                       "none (" + reason + ")");
  if (error == cudaErrorMemoryAllocation)
    return {StatusCode::kOutOfMemory,
            "[" + std::string(op) + "] device: expected enough memory, got " + reason};
  return {StatusCode::kInternal, "[" + std::string(op) + "] device: expected success, got " + reason};
}

Status ask(const char* op, int device, Properties* found) {
  constexpr cudaDeviceAttr kWanted[] = {cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
                                        cudaDevAttrMultiProcessorCount,
                                        cudaDevAttrMaxSharedMemoryPerBlockOptin};
  int values[4];
  for (int i = 0; i < 4; ++i) {
    const cudaError_t error = cudaDeviceGetAttribute(&values[i], kWanted[i], device);
    if (error != cudaSuccess) return status_of(op, error);
  }
  *found = {values[0], values[1], values[2], values[3], device, values[0] == 9 && values[1] == 0};
  if (found->major >= 8) return {};
  return unsupported(op, "device", "a CUDA device of compute capability 8.0 or more",
                     std::to_string(found->major) + "." + std::to_string(found->minor));
}

}  // namespace

Status properties(const char* op, Properties* found) {
  static std::mutex mutex;
  static std::map<int, Properties> known;
  int device = 0, count = 0;
  if (cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return status_of(op, error);
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return status_of(op, error);
  std::lock_guard<std::mutex> lock(mutex);
  if (const auto one = known.find(device); one != known.end()) {
    *found = one->second;
    return {};
  }
  if (Status status = ask(op, device, found); !status.ok()) return status;
  known[device] = *found;
  return {};
}

Status device_count(const char* op, int* count) { return status_of(op, cudaGetDeviceCount(count)); }
Status current_device(const char* op, int* index) { return status_of(op, cudaGetDevice(index)); }
Status set_device(const char* op, int index) { return status_of(op, cudaSetDevice(index)); }

Status fill(const char* op, void* memory, int byte, size_t bytes, void* stream) {
  return status_of(op, cudaMemsetAsync(memory, byte, bytes, static_cast<cudaStream_t>(stream)));
}

Status allocate(const char* op, size_t bytes, void** memory) {
  return status_of(op, cudaMalloc(memory, bytes > 0 ? bytes : 1));
}

void release(void* memory) { cudaFree(memory); }

Status copy(const char* op, void* to, const void* from, size_t bytes, void* stream) {
  const auto of = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, of);
  return error == cudaSuccess ? synchronize(op, stream) : status_of(op, error);
}

Status create_stream(const char* op, void** stream) {
  cudaStream_t made = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  *stream = made;
  return status_of(op, error);
}

void destroy_stream(void* stream) { cudaStreamDestroy(static_cast<cudaStream_t>(stream)); }

Status begin_capture(const char* op, void* stream) {
  return status_of(
      op, cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal));
}

Status end_capture(const char* op, void* stream, void** graph) {
  *graph = nullptr;
  cudaGraph_t kept = nullptr;
  if (cudaError_t error = cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &kept);
      error != cudaSuccess)
    return status_of(op, error);
  cudaGraphExec_t made = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&made, kept, 0);
  cudaGraphDestroy(kept);
  if (error == cudaSuccess) *graph = made;
  return status_of(op, error);
}

Status launch_graph(const char* op, void* graph, void* stream) {
  return status_of(op,
                   cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)));
}

void destroy_graph(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

Status free_memory(const char* op, size_t* bytes) {
  size_t total = 0;
  return status_of(op, cudaMemGetInfo(bytes, &total));
}

Status synchronize(const char* op, void* stream) {
  return status_of(op, cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

}  // namespace earnest::cuda
