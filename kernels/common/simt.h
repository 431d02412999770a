// SPDX-License-Identifier: Apache-2.0
// What a CUDA kernel of this house is written with. The same source is compiled by nvcc for the GPU, and by
// the host's compiler for the emulator (simt_emulator.h), which has the same names for what is listed here:
//
//   __global__ __device__ __launch_bounds__ ...    threadIdx blockIdx blockDim gridDim
//   __syncthreads, _or, _and, _count    __syncwarp    __shfl_sync, _up_, _down_, _xor_
//   __ballot_sync __any_sync __all_sync    atomicAdd Min Max Exch CAS Or And on integers (none on floats)
//   __threadfence __ldg __popc __ffs __clz, conversions of bits
//
// and, ours:
//   EARNEST_SHARED(T, name, size)             an array that the block shares; a pass of its bounds is found
//   simt::Shared<T>                           how a function takes one
//   simt::dynamic_shared<T>(offset, count)    part of the memory asked for at launch, offset in bytes
//   simt::launch(label, kernel, grid, block, shared_bytes, stream, arguments...) -> Status
//   simt::launch_clusters(cluster, label, ...)  the same of `cluster` blocks each, side by side (hopper.h)
//   simt::load_acquire, store_release, pause  how blocks wait for each other
#pragma once

#include "kernels/common/host_device.h"

#if defined(EARNEST_EMULATED)
#include "kernels/common/simt_builtins.h"
#else
#include "kernels/common/simt_nvcc.h"
#endif

namespace earnest::simt {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

}  // namespace earnest::simt
