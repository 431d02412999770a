// SPDX-License-Identifier: Apache-2.0
// Marks a function that kernels on a GPU may call too.
#pragma once

#if defined(__CUDACC__)
#define EARNEST_HOST_DEVICE __host__ __device__
#else
#define EARNEST_HOST_DEVICE
#endif
