// SPDX-License-Identifier: Apache-2.0
// Path vendor: NVIDIA's cuBLASLt, looked for when it is first asked for: the library that the environment's
// EARNEST_CUBLASLT names, else libcublasLt.so.13 or .12, of which a process with torch has one already.
// Nothing of it is needed to build earnest, or to run it on the other paths.
#pragma once

#include <cstddef>

#include "kernels/common/cuda.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_paths.h"

namespace earnest::linear::vendor {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr size_t kAlignment = 256;

// Linear's find_vendor.
Status available(const char* op, const char* argument, const char* others);

// Where there is one. The first product on a device opens a handle there, and one of a new shape, type or
// alignment asks for an algorithm; both are kept. So what a CUDA graph is to hold must have run once before.
// `workspace`: kWorkspaceBytes, aligned.
Status run(const gpu::Operands& operands, Type type, const cuda::Properties& device, void* workspace,
           void* stream);

}  // namespace earnest::linear::vendor
