// SPDX-License-Identifier: Apache-2.0
#define EARNEST_TIER scalar
#include "kernels/sampling/sampling_loops.h"
