// SPDX-License-Identifier: Apache-2.0
// One step of the engine: at most one chunk of sound is encoded, and the decoder runs over new tokens of many
// dialogues, of which those that reach their end draw a token. Everything it reads was copied, or does not
// change meanwhile, so that it needs no lock.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/model.h"
#include "csrc/engine/states.h"

namespace earnest::engine {

// New tokens of one dialogue.
struct StepRow {
  std::shared_ptr<SessionState> session;
  std::shared_ptr<Prefix> prefix;
  std::shared_ptr<AnswerState> answer;  // none: they are read ahead
  std::vector<int64_t> ids;             // kGivenEmbedding where sound is heard
  std::vector<char> embeddings;         // of those places
  bool draws = false;                   // they end where the answer goes on
  uint64_t index = 0;                   // of the token that is drawn

  Status status;
  bool read = false;   // their keys and values are numbers, and so are all before them
  bool drawn = false;  // token is there, as the model drew it; else from logits
  int32_t token = 0;
  std::vector<char> hidden;  // of the last of them
};

// Log-probabilities of tokens that were drawn earlier.
struct StepRating {
  std::shared_ptr<AnswerState> answer;
  std::vector<int64_t> tokens;
  std::vector<char> hidden;
  std::vector<float> logp;
};

struct Step {
  std::shared_ptr<HeardChunk> chunk;  // to be encoded, or none
  std::vector<char> embeddings;       // of it
  Status heard;
  std::vector<StepRow> rows;
  std::vector<StepRating> ratings;

  bool empty() const { return chunk == nullptr && rows.empty() && ratings.empty(); }
};

// Tokens [first, first + count) of a dialogue into a row; their sounds have been heard.
void gather(const Transcript& tokens, int64_t first, int64_t count, size_t row_bytes, StepRow* row);

// What fails, fails for its own row alone.
// graphs: for steps in which every row is a token of an answer.
void compute(const Model& model, Arena* arena, DecodeGraphs* graphs, Step* step);

// logp of tokens from the hidden states that they were drawn from.
Status rate(const Model& model, const std::vector<char>& hidden, const std::vector<int64_t>& tokens,
            double temperature, Arena* arena, std::vector<float>* logp);

}  // namespace earnest::engine
