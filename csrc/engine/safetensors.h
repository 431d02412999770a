// SPDX-License-Identifier: Apache-2.0
// Checkpoints: safetensors files, one or several with an index, mapped and not copied. Hostile until checked:
// every length, offset, shape and name is verified against the file before a tensor is handed out, and each
// refusal names the file and the tensor. Format: 8 bytes little-endian length of the header, the header
// (JSON: name -> dtype, shape, data_offsets; "__metadata__" may be there), then the numbers, without gaps.
#pragma once

#include <string>

#include "csrc/engine/tensor.h"
#include "kernels/common/status.h"

namespace earnest::engine {

constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;
constexpr int64_t kMaxAxes = 8;

// Adds the tensors of one file. A name that `tensors` has already is refused.
Status read_safetensors(const std::string& path, Tensors* tensors);

// Those of a folder: the shards that model.safetensors.index.json lists, or else model.safetensors.
Status read_checkpoint(const std::string& folder, Tensors* tensors);

}  // namespace earnest::engine
