// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/head.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "csrc/engine/guard.h"
#include "csrc/engine/parcel.h"

namespace earnest::engine {

Status Head::create(const TextConfig& config, Weights* weights) {
  config_ = config;
  precision_ = weights->precision();
  device_ = weights->device();
  const std::string name = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  const bool quantized = weights->is_quantized(name);
  if (!quantized) EARNEST_RETURN_IF_ERROR(weights->array(name, &rows_));
  if (quantized || precision_ == Precision::kBFloat16) return weights->head_matrix(name, &matrix_);
  EARNEST_RETURN_IF_ERROR(logprob::packed_size(score_matrix(), &packed_bytes_));
  memory_ = std::make_unique<WeightMemory>();
  packed_ = memory_->take(packed_bytes_);
  return refresh();
}

logprob::ScoreMatrix Head::score_matrix() const {
  logprob::ScoreMatrix matrix;
  matrix.vocabulary = config_.vocab_size;
  matrix.depth = config_.hidden_size;
  matrix.weight = rows_->data();
  return matrix;
}

Status Head::refresh() { return packed_ == nullptr ? Status() : logprob::pack(score_matrix(), packed_); }

Status Head::logits(const void* hidden, int64_t rows, float* logits, Arena* arena,
                    std::span<Drawing> drawings) const {
  const Arena::Scope scope(arena);
  if (has_scores()) return scores(hidden, rows, logits, arena->take<logprob::RowNorm>(rows), arena);
  if (precision_ != Precision::kBFloat16) return matrix_->multiply(hidden, rows, logits, arena);
  const int64_t count = rows * config_.vocab_size;
  BFloat16* rounded = arena->take<BFloat16>(count);
  if (device_ == Device::kCuda)
    return logits_there(hidden, rows, drawings, rounded, logits, arena->on(device_));
  EARNEST_RETURN_IF_ERROR(matrix_->multiply(hidden, rows, rounded, arena));
  for (int64_t i = 0; i < count; ++i) logits[i] = widen(rounded[i]);
  return {};
}

Status Head::logits_there(const void* hidden, int64_t rows, std::span<Drawing> drawings, BFloat16* rounded,
                          float* logits, Arena* arena) const {
  const Arena::Scope scope(arena);
  const char* sent = nullptr;
  Parcel parcel;
  parcel.add(static_cast<const char*>(hidden),
             rows * config_.hidden_size * static_cast<int64_t>(size_of(precision_)), &sent);
  EARNEST_RETURN_IF_ERROR(parcel.send("logits", arena));
  DeviceDraws draws;
  EARNEST_RETURN_IF_ERROR(draws.send(drawings, arena));
  BFloat16* made = arena->take<BFloat16>(rows * config_.vocab_size);
  EARNEST_RETURN_IF_ERROR(matrix_->multiply(sent, rows, made, arena));
  if (draws.any()) {
    int32_t* const tokens = arena->take<int32_t>(rows);
    std::vector<int32_t> drawn(static_cast<size_t>(rows));
    EARNEST_RETURN_IF_ERROR(draws.launch(made, config_.vocab_size, tokens, arena));
    EARNEST_RETURN_IF_ERROR(copy("logits", device_, drawn.data(), tokens, drawn.size() * sizeof(int32_t)));
    draws.take(drawn.data(), drawings);
  }
  return draws.bring(made, rows, config_.vocab_size, rounded, logits);
}

Status Head::scores(const void* hidden, int64_t rows, float* logits, logprob::RowNorm* norms,
                    Arena* arena) const {
  const Arena::Scope scope(arena);
  logprob::Scores job;
  job.rows = rows;
  job.vocabulary = config_.vocab_size;
  job.depth = config_.hidden_size;
  job.hidden = hidden;
  job.packed = packed_;
  job.logits = logits;
  job.norms = norms;
  return logprob::run(job, arena->take<char>(static_cast<int64_t>(logprob::workspace_size(job))));
}

Status Head::logprob(const void* hidden, int64_t rows, const int64_t* targets, double temperature,
                     float* logp, float* entropy, Arena* arena) const {
  if (rows_ == nullptr) return logprob_of_logits(hidden, rows, targets, temperature, logp, entropy, arena);
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
  if (device_ == Device::kCuda) return logprob_there(job, arena->on(device_));
  job.lse = arena->take<float>(rows);
  return logprob::run(job, arena->take<char>(static_cast<int64_t>(logprob::workspace_size(job))));
}

// The job, whose arrays but the weight lie in memory of the host.
Status Head::logprob_there(logprob::Forward job, Arena* arena) const {
  constexpr char kOp[] = "logprob";
  const Arena::Scope scope(arena);
  const int64_t rows = job.problem.rows;
  float* const logp = static_cast<float*>(job.logp);
  float* const entropy = static_cast<float*>(job.entropy);
  const char* hidden = nullptr;
  const int64_t* targets = nullptr;
  Parcel parcel;
  parcel.add(static_cast<const char*>(job.problem.hidden),
             rows * config_.hidden_size * static_cast<int64_t>(size_of(precision_)), &hidden);
  parcel.add(job.problem.targets, rows, &targets);
  EARNEST_RETURN_IF_ERROR(parcel.send(kOp, arena));
  float* const made = arena->take<float>(3 * rows);
  auto* const fault = arena->take<FaultWord>(1);
  EARNEST_RETURN_IF_ERROR(fill(kOp, device_, fault, 0xff, sizeof *fault));
  job.problem.device = device_;
  job.problem.fault = fault;
  job.problem.hidden = hidden;
  job.problem.targets = targets;
  job.logp = made;
  job.entropy = made + rows;
  job.lse = made + 2 * rows;
  EARNEST_RETURN_IF_ERROR(
      logprob::run(job, arena->take<char>(static_cast<int64_t>(logprob::workspace_size(job)))));
  FaultWord word = kNoFault;
  const size_t bytes = static_cast<size_t>(rows) * sizeof(float);
  EARNEST_RETURN_IF_ERROR(copy(kOp, device_, &word, fault, sizeof word));
  EARNEST_RETURN_IF_ERROR(logprob::fault(job.problem, word));
  EARNEST_RETURN_IF_ERROR(copy(kOp, device_, logp, made, bytes));
  return copy(kOp, device_, entropy, made + rows, bytes);
}

Status Head::logprob_of_logits(const void* hidden, int64_t rows, const int64_t* targets, double temperature,
                               float* logp, float* entropy, Arena* arena) const {
  if (!(temperature > 0)) {
    return invalid_argument("logprob", "temperature", "above 0", std::to_string(temperature));
  }
  const Arena::Scope scope(arena);
  const int64_t vocabulary = config_.vocab_size;
  float* scores = arena->take<float>(vocabulary);
  for (int64_t row = 0; row < rows; ++row) {
    if (targets[row] < 0 || targets[row] >= vocabulary) {
      return invalid_argument("logprob", "targets", "ids in [0, " + std::to_string(vocabulary) + ")",
                              std::to_string(targets[row]));
    }
    const char* one = static_cast<const char*>(hidden) +
                      static_cast<size_t>(row * config_.hidden_size) * size_of(precision_);
    EARNEST_RETURN_IF_ERROR(logits(one, 1, scores, arena));
    const auto largest = static_cast<double>(*std::max_element(scores, scores + vocabulary));
    double sum = 0, weighted = 0;
    for (int64_t i = 0; i < vocabulary; ++i) {
      const double off = (static_cast<double>(scores[i]) - largest) / temperature, share = std::exp(off);
      sum += share;
      weighted += share * off;
    }
    const double log_sum = std::log(sum);
    logp[row] =
        static_cast<float>((static_cast<double>(scores[targets[row]]) - largest) / temperature - log_sum);
    entropy[row] = static_cast<float>(log_sum - weighted / sum);
  }
  return {};
}

}  // namespace earnest::engine
