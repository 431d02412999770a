// SPDX-License-Identifier: Apache-2.0
// The baseline of every processor: 16-byte vectors are SSE2 on x86-64 and NEON on ARM.
#define EARNEST_PPO_TIER scalar
#define EARNEST_PPO_BYTES 16
#include "kernels/ppo/tier.h"
