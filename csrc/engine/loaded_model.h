// SPDX-License-Identifier: Apache-2.0
// What a model folder holds, together: weights, words, and which ids mean what. Nothing in it changes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/engine/digest.h"
#include "csrc/engine/model.h"
#include "csrc/engine/template.h"
#include "csrc/engine/tokenizer.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// Which weights these are, for files that must not meet others: the config's sizes, how they are
// computed with, and names, shapes and some numbers of every tensor (all numbers of an 8B model would take
// minutes).
Digest fingerprint_of(const Config& config, Precision precision, Quantization quantization,
                      const Tensors& tensors);

class LoadedModel {
 public:
  // A folder in the published format: config.json, tokenizer.json, one or many .safetensors.
  static Status load(const std::string& folder, Precision precision, Quantization quantization,
                     std::shared_ptr<const LoadedModel>* loaded, const Place& place = {});

  // The same from parts. Refuses a tokenizer whose ids go beyond the vocabulary, or lack the family's names.
  static Status create(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                       const Digest& fingerprint, std::shared_ptr<const LoadedModel>* loaded);

  const Model& model() const { return *model_; }
  const Config& config() const { return model_->config(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const SpecialIds& special() const { return special_; }
  const Digest& fingerprint() const { return fingerprint_; }

  // Tokens that end an answer: the family's, and those that the config names.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  // Tokens that no answer may hold: rows of the vocabulary without a token, and what only a prompt has
  // (<|BOT|>, audio, speech).
  const std::vector<int32_t>& suppressed() const { return suppressed_; }

  int64_t context() const { return config().text.max_position_embeddings; }

  // JSON: sizes, context, special tokens, precision, bytes of weights.
  const std::string& info() const { return info_; }

 private:
  LoadedModel() = default;
  void choose_ids();
  std::string describe() const;

  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  SpecialIds special_ = {};
  Digest fingerprint_ = {};
  std::vector<int32_t> stop_ids_, suppressed_;
  std::string info_;
};

}  // namespace earnest::engine
