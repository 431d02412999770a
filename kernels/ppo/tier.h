// SPDX-License-Identifier: Apache-2.0
// Everything of this family that is written once and compiled per tier. The includer defines EARNEST_PPO_TIER
// (a namespace) and EARNEST_PPO_BYTES (the width of its registers).
#pragma once

#include "kernels/ppo/advantage_tile.h"
#include "kernels/ppo/gae_tile.h"
#include "kernels/ppo/loss_tile.h"
#include "kernels/ppo/tiers.h"

namespace earnest::ppo::EARNEST_PPO_TIER {

template <typename T>
TierKernels<T> kernels() {
  return {gae_sequences<T>, loss_block<T>, count_block, moments_block<T>, whiten_block<T>};
}
template TierKernels<float> kernels<float>();
template TierKernels<double> kernels<double>();

}  // namespace earnest::ppo::EARNEST_PPO_TIER
