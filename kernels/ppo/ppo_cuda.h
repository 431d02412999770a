// SPDX-License-Identifier: Apache-2.0
// The seam to CUDA: X_cuda.cu in a build with it, ppo_nocuda.cc in one without. Settings have been checked;
// arrays are the device's and have not.
#pragma once

#include <string>

#include "kernels/common/status.h"
#include "kernels/ppo/advantage.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/loss.h"

namespace earnest::ppo {

template <typename T>
Status gae_cuda(const GaeParams<T>& params);

// normalizer: as run_loss has been given it.
template <typename T>
Status loss_cuda(const LossParams<T>& params, void* workspace);

template <typename T>
Status moments_cuda(const MomentsParams<T>& params, Moments* moments, void* workspace);
template <typename T>
Status whiten_cuda(const WhitenParams<T>& params);
template <typename T>
Status group_advantage_cuda(const GroupParams<T>& params, void* workspace);

Status which_cuda(std::string* name);

}  // namespace earnest::ppo
