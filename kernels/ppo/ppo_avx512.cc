// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_PPO_TIER avx512
#define EARNEST_PPO_BYTES 64
#include "kernels/ppo/tier.h"
#endif
