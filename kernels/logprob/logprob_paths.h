// SPDX-License-Identifier: Apache-2.0
// The CUDA back end's paths to a product: sm80 (mma.sync and cp.async; float32 and float64 by plain
// multiply-adds) runs on every GPU of compute capability 8.0 or more and takes any shape; sm90a (wgmma and
// TMA) runs on 9.0 and takes bfloat16 arrays that begin on 16 bytes, in rows of whole 16 bytes.
#pragma once

#include "kernels/common/status.h"
#include "kernels/logprob/logprob_jobs.h"
#include "kernels/logprob/logprob_plan.h"

namespace earnest::logprob::gpu {

// left [rows, depth] times right [columns, depth] transposed. A job says which of them lie transposed in
// memory; `pitch` is the number of elements between two rows as they lie.
struct Operand {
  const void* data;
  int64_t pitch;
};
struct Product {
  Operand left, right;
  int64_t rows, columns, depth;
};

// Parts of a row's logits that the path's LogitSums writes: columns per unit of work, and parts in each.
struct Parts {
  int64_t columns, parts;
  constexpr int64_t count(int64_t vocabulary) const { return blocks_of(vocabulary, columns) * parts; }
};

namespace sm80 {
constexpr Parts kParts = {2048, 2};
template <typename Job>
Status run(const Product& product, const Job& job, void* stream);
}  // namespace sm80

namespace sm90a {
constexpr Parts kParts = {1024, 1};
template <typename Job>
Status run(const Product& product, const Job& job, void* stream);
}  // namespace sm90a

}  // namespace earnest::logprob::gpu
