// SPDX-License-Identifier: Apache-2.0
// What encoder and decoder ask of kernels/attention in the same way.
#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/engine/arena.h"
#include "csrc/engine/weights.h"
#include "kernels/attention/attention.h"

namespace earnest::engine {

template <typename T>
attention::Params attention_over(int64_t heads, int64_t kv_heads, int64_t dim) {
  attention::Params params;
  params.type = std::is_same_v<T, float> ? attention::Type::kFloat32 : attention::Type::kBFloat16;
  params.heads = heads;
  params.kv_heads = kv_heads;
  params.dim = dim;
  params.scale = std::pow(static_cast<double>(dim), -0.5);
  return params;
}

// Where the arena lies.
template <typename T>
Status attend(attention::Params params, T* out, Arena* arena) {
  const Arena::Scope scope(arena);
  params.device = arena->device();
  params.stream = arena->stream();
  params.workspace = arena->take<char>(static_cast<int64_t>(attention::workspace_size(params)));
  return attention::forward(params, {out, nullptr});
}

}  // namespace earnest::engine
