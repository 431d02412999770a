// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/head.h"

#include <string>

#include "csrc/engine/guard.h"
#include "kernels/logprob/logprob.h"

namespace earnest::engine {

Status Head::create(const TextConfig& config, Weights* weights) {
  config_ = config;
  precision_ = weights->precision();
  const std::string name = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  EARNEST_RETURN_IF_ERROR(weights->head_matrix(name, &matrix_));
  return weights->array(name, &rows_);
}

Status Head::logits(const void* hidden, int64_t rows, float* logits, Arena* arena) const {
  if (precision_ != Precision::kBFloat16) return matrix_->multiply(hidden, rows, logits, arena);
  const Arena::Scope scope(arena);
  const int64_t count = rows * config_.vocab_size;
  BFloat16* rounded = arena->take<BFloat16>(count);
  EARNEST_RETURN_IF_ERROR(matrix_->multiply(hidden, rows, rounded, arena));
  for (int64_t i = 0; i < count; ++i) logits[i] = widen(rounded[i]);
  return {};
}

Status Head::logprob(const void* hidden, int64_t rows, const int64_t* targets, double temperature,
                     float* logp, float* entropy, Arena* arena) const {
  const Arena::Scope scope(arena);
  logprob::Forward job;
  job.problem.type = precision_ != Precision::kBFloat16 ? logprob::Type::kFloat32 : logprob::Type::kBFloat16;
  job.problem.rows = rows;
  job.problem.depth = config_.hidden_size;
  job.problem.vocabulary = config_.vocab_size;
  job.problem.temperature = temperature;
  job.problem.hidden = hidden;
  job.problem.weight = rows_->data();
  job.problem.targets = targets;
  job.logp = logp;
  job.entropy = entropy;
  job.lse = arena->take<float>(rows);
  return logprob::run(job, arena->take<char>(static_cast<int64_t>(logprob::workspace_size(job))));
}

}  // namespace earnest::engine
