// SPDX-License-Identifier: Apache-2.0
#define EARNEST_TIER scalar
#include "kernels/rowwise/rowwise_loops.h"
