// SPDX-License-Identifier: Apache-2.0
// From hidden states to words: logits for the sampler, and the log-probabilities that it reports, which are
// the trainer's. Everything that goes in and comes out lies in memory of the host; where the weights lie on a
// GPU, the products are made there.
#pragma once

#include <memory>
#include <span>

#include "csrc/engine/arena.h"
#include "csrc/engine/config.h"
#include "csrc/engine/device_draws.h"
#include "csrc/engine/weight_memory.h"
#include "csrc/engine/weights.h"
#include "kernels/common/status.h"
#include "kernels/logprob/logprob.h"
#include "kernels/logprob/scores.h"

namespace earnest::engine {

class Head {
 public:
  Status create(const TextConfig& config, Weights* weights);

  // Reads the matrix again, after it has changed where it lies.
  Status refresh();

  // hidden [rows, hidden_size] of the model's precision -> logits [rows, vocab_size], rounded to the model's
  // precision, but for rows of `drawings` [rows, or none] that a GPU draws where they are. May throw
  // std::bad_alloc, as all below.
  Status logits(const void* hidden, int64_t rows, float* logits, Arena* arena,
                std::span<Drawing> drawings = {}) const;

  // On a GPU, of hidden states there: the product alone, on the arena's stream.
  Status launch(const void* hidden, int64_t rows, BFloat16* logits, Arena* arena) const {
    return matrix_->multiply(hidden, rows, logits, arena);
  }

  // Whether `scores` can run: the logits that are drawn from are then those that logprob is taken from.
  bool has_scores() const { return packed_ != nullptr; }
  // The same logits, and norms [rows] that make the bits of `logprob` at temperature 1 of them (logp_of).
  Status scores(const void* hidden, int64_t rows, float* logits, logprob::RowNorm* norms, Arena* arena) const;

  // logp and entropy [rows] of targets [rows] at this temperature: from the products before they are
  // rounded, or, where the matrix is quantised, from its logits.
  Status logprob(const void* hidden, int64_t rows, const int64_t* targets, double temperature, float* logp,
                 float* entropy, Arena* arena) const;

  size_t bytes() const { return packed_bytes_; }  // of what it packed itself

 private:
  Status logprob_of_logits(const void* hidden, int64_t rows, const int64_t* targets, double temperature,
                           float* logp, float* entropy, Arena* arena) const;
  Status logits_there(const void* hidden, int64_t rows, std::span<Drawing> drawings, BFloat16* rounded,
                      float* logits, Arena* arena) const;
  Status logprob_there(logprob::Forward job, Arena* arena) const;
  logprob::ScoreMatrix score_matrix() const;

  TextConfig config_;
  Precision precision_ = Precision::kFloat32;
  Device device_ = Device::kCpu;
  const Matrix* matrix_ = nullptr;  // null: packed_ instead
  const Array* rows_ = nullptr;     // of the same matrix, as kernels/logprob reads it; null: quantised
  std::unique_ptr<WeightMemory> memory_;
  void* packed_ = nullptr;  // for kernels/logprob/scores.h
  size_t packed_bytes_ = 0;
};

}  // namespace earnest::engine
