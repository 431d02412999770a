// SPDX-License-Identifier: Apache-2.0
// What a sampler asks for before it has chosen a token: all logits of a few rows, and what makes a
// log-probability of each of them. The matrix is packed once for many runs.
//
//   z[n, v] = dot(hidden[n, :], weight[v, :])        norm[n]: max_v z[n, v], log sum_v exp(z[n, v] - max)
//   logp(n, v) = z[n, v] - max - log sum, the bits of logprob.h at temperature 1
//
// The logits are also the bits of kernels/linear in float32, and those before rounding in bfloat16 where the
// tier multiplies it as it is. A row's results depend on that row and the matrix alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/status.h"
#include "kernels/logprob/logprob.h"

namespace earnest::logprob {

struct ScoreMatrix {
  Type type = Type::kFloat32;    // kFloat32 or kBFloat16
  int64_t vocabulary = 0;        // V, at least 1
  int64_t depth = 0;             // H, at least 1
  const void* weight = nullptr;  // [V, H]
};

// For the tier in force, and to be used in it.
Status packed_size(const ScoreMatrix& matrix, size_t* bytes);
Status pack(const ScoreMatrix& matrix, void* packed);  // packed: on a 64-byte boundary for full speed

struct RowNorm {
  double max, log_sum;
};

struct Scores {
  Type type = Type::kFloat32;  // that of the packed matrix, as vocabulary and depth
  int64_t rows = 0;            // N, may be 0
  int64_t vocabulary = 0;
  int64_t depth = 0;
  const void* hidden = nullptr;  // [N, H]
  const void* packed = nullptr;  // from pack()
  float* logits = nullptr;       // [N, V], written
  RowNorm* norms = nullptr;      // [N], written
};

size_t workspace_size(const Scores& scores);  // needs no alignment and no particular content
Status run(const Scores& scores, void* workspace);

// Of the token with this logit.
inline float logp_of(float logit, const RowNorm& norm) {
  return static_cast<float>(static_cast<double>(logit) - norm.max - norm.log_sum);
}

}  // namespace earnest::logprob
