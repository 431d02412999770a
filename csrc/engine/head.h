// SPDX-License-Identifier: Apache-2.0
// From hidden states to words: logits for the sampler, and the log-probabilities that it reports, which are
// the trainer's.
#pragma once

#include "csrc/engine/arena.h"
#include "csrc/engine/config.h"
#include "csrc/engine/weights.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class Head {
 public:
  Status create(const TextConfig& config, Weights* weights);

  // hidden [rows, hidden_size] of the model's precision -> logits [rows, vocab_size], rounded to the model's
  // precision. May throw std::bad_alloc, as logprob.
  Status logits(const void* hidden, int64_t rows, float* logits, Arena* arena) const;

  // logp and entropy [rows] of targets [rows] at this temperature: from the products before they are
  // rounded, or, where the matrix is quantised, from its logits.
  Status logprob(const void* hidden, int64_t rows, const int64_t* targets, double temperature, float* logp,
                 float* entropy, Arena* arena) const;

 private:
  Status logprob_of_logits(const void* hidden, int64_t rows, const int64_t* targets, double temperature,
                           float* logp, float* entropy, Arena* arena) const;

  TextConfig config_;
  Precision precision_ = Precision::kFloat32;
  const Matrix* matrix_ = nullptr;
  const Array* rows_ = nullptr;  // of the same matrix, as kernels/logprob reads it; null: quantised
};

}  // namespace earnest::engine
