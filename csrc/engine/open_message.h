// SPDX-License-Identifier: Apache-2.0
// A message that is still being written, and what of it is certain already. Text may merge with text that
// follows; up to the last chunk of sound nothing can change any more.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "csrc/engine/loaded_model.h"
#include "csrc/engine/message.h"
#include "csrc/engine/session.h"
#include "csrc/engine/template.h"
#include "csrc/engine/transcript.h"

namespace earnest::engine {

using Chunks = std::vector<std::shared_ptr<HeardChunk>>;

struct OpenMessage {
  std::string role;
  std::vector<std::variant<std::string, Chunks>> parts;

  int64_t tokens_of_audio() const;
};

// A piece of a dialogue: places count from its first id.
struct Piece {
  std::vector<int32_t> ids;
  std::vector<AudioPlace> audio;
  bool inside_thought = false;
};

// "human" and "user" are one role.
std::string_view canonical_role(std::string_view role);
Status check_role(std::string_view role);

// The ids of one message. first: it begins the dialogue, so that the tools stand before it.
Status ids_of(const OpenMessage& message, bool first, const LoadedModel& model, const SessionOptions& options,
              Piece* piece);
// Those that are certain while the message is open.
Status certain_ids_of(const OpenMessage& message, bool first, const LoadedModel& model,
                      const SessionOptions& options, Piece* piece);
// Of a whole answer, reasoning null: none known.
Status ids_of_answer(const std::string* reasoning, std::string_view reply, bool first,
                     const LoadedModel& model, const SessionOptions& options, Piece* piece);

// What opens an answer: the header, and a thought (prompt) or a given beginning (prefill, or "").
Status ids_of_prompt(Prompt prompt, const std::string& prefill, const LoadedModel& model,
                     const SessionOptions& options, Piece* piece);

}  // namespace earnest::engine
