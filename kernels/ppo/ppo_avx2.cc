// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define EARNEST_PPO_TIER avx2
#define EARNEST_PPO_BYTES 32
#include "kernels/ppo/tier.h"
#endif
