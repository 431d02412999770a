// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end, whose jobs have been checked. Without CUDA each of these says so.
#pragma once

#include "kernels/rowwise/rowwise.h"

namespace earnest::rowwise {

Status which_cuda(std::string* name);

template <typename Stored>
Status rms_norm_cuda(const RmsNorm<Stored>& job);
template <typename Fused, typename Apart>
Status rotary_cuda(const Rotary<Fused, Apart>& job);
template <typename Stored>
Status swiglu_cuda(const SwiGlu<Stored>& job);

}  // namespace earnest::rowwise
