// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_TIER avx2
#include "kernels/frames/frames_loops.h"
#endif
