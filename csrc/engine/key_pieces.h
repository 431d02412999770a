// SPDX-License-Identifier: Apache-2.0
// Whether attention on a GPU takes a batch's keys in pieces of 512, each a softmax of its own
// (attention::Params::most_keys), or whole: a pure function.
//
// Where a row's bits must be its sequence's alone, always in pieces: a token that is decoded and a prompt
// then have the same sums. Where the vendor multiplies they need not, and pieces are taken for their speed:
// of one query each piece is a block's, while a prompt's rows fill the GPU as they are and lose by joining.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/engine/products.h"
#include "kernels/attention/attention_pieces.h"

namespace earnest::engine {

// cu_seqlens_q [sequences + 1], used [sequences]: of each sequence where its queries begin, and its keys. A
// call is for all of them: in pieces if it has no prompt, or beside one a single query that sees many keys.
inline bool takes_pieces(Products products, const std::vector<int32_t>& cu_seqlens_q,
                         const std::vector<int32_t>& used) {
  if (products == Products::kOurs) return true;
  int32_t most_queries = 0;
  for (size_t n = 0; n < used.size(); ++n) {
    const int32_t queries = cu_seqlens_q[n + 1] - cu_seqlens_q[n];
    if (queries == 1 && used[n] > attention::gpu::kPieceKeys) return true;
    most_queries = std::max(most_queries, queries);
  }
  return most_queries <= 1;
}

}  // namespace earnest::engine
