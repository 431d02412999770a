// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx2
#include "kernels/sampling/sampling_loops.h"
#endif
