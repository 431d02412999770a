// SPDX-License-Identifier: Apache-2.0
// The seam to the CUDA back end, whose jobs have been checked. Without CUDA each of these says so.
#pragma once

#include "kernels/frames/frames.h"

namespace earnest::frames {

Status which_cuda(std::string* name);

template <typename Stored>
Status run_cuda(const LayerNorm<Stored>& job);
template <typename Stored>
Status run_cuda(const Gelu<Stored>& job);
template <typename Stored>
Status run_cuda(const Relu<Stored>& job);
template <typename Stored>
Status run_cuda(const Add<Stored>& job);
template <typename Stored>
Status run_cuda(const AveragePool<Stored>& job);
template <typename Stored>
Status run_cuda(const Transpose<Stored>& job);

}  // namespace earnest::frames
