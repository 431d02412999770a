// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/open_message.h"

#include <algorithm>

#include "csrc/engine/guard.h"
#include "csrc/engine/json.h"

namespace earnest::engine {
namespace {

RenderOptions rendering(const SessionOptions& options, bool first) {
  RenderOptions how;
  how.name = options.template_name;
  how.prompt = Prompt::kNone;
  if (first) how.tools = options.tools;
  return how;
}

// The first `parts` parts as the template takes them, and the clips among them.
Message message_of(const OpenMessage& open, size_t parts, std::vector<const Chunks*>* clips) {
  Message message{open.role, {}, std::nullopt};
  for (size_t i = 0; i < parts; ++i) {
    if (const auto* text = std::get_if<std::string>(&open.parts[i])) {
      message.parts.emplace_back(Text{*text});
      continue;
    }
    const auto& chunks = std::get<Chunks>(open.parts[i]);
    Clip clip;
    for (const auto& chunk : chunks) clip.frames.push_back(chunk->rows);
    clips->push_back(&chunks);
    message.parts.emplace_back(std::move(clip));
  }
  return message;
}

Status rendered(const OpenMessage& open, size_t parts, bool first, const LoadedModel& model,
                const SessionOptions& options, Piece* piece) {
  std::vector<const Chunks*> clips;
  const Message message = message_of(open, parts, &clips);
  Rendered result;
  EARNEST_RETURN_IF_ERROR(render({message}, model.tokenizer(), rendering(options, first), &result));
  piece->ids = std::move(result.ids);
  piece->audio.clear();
  for (const AudioSpan& span : result.audio) {
    const Chunks& chunks = *clips[static_cast<size_t>(span.clip)];
    piece->audio.push_back({span.start, chunks[static_cast<size_t>(span.chunk)]});
  }
  return {};
}

bool sounds(const std::variant<std::string, Chunks>& part) {
  const auto* chunks = std::get_if<Chunks>(&part);
  return chunks != nullptr &&
         std::any_of(chunks->begin(), chunks->end(), [](const auto& chunk) { return chunk->rows > 0; });
}

}  // namespace

int64_t OpenMessage::tokens_of_audio() const {
  int64_t tokens = 0;
  for (const auto& part : parts) {
    if (const auto* chunks = std::get_if<Chunks>(&part)) {
      for (const auto& chunk : *chunks) tokens += chunk->rows;
    }
  }
  return tokens;
}

std::string_view canonical_role(std::string_view role) { return role == "human" ? "user" : role; }

Status check_role(std::string_view role) {
  if (!role.empty() && role.find('\n') == role.npos) return {};
  return invalid_argument("session", "role", "a word", json::quoted(role));
}

Status ids_of(const OpenMessage& message, bool first, const LoadedModel& model, const SessionOptions& options,
              Piece* piece) {
  return rendered(message, message.parts.size(), first, model, options, piece);
}

Status certain_ids_of(const OpenMessage& message, bool first, const LoadedModel& model,
                      const SessionOptions& options, Piece* piece) {
  *piece = {};
  size_t parts = message.parts.size();
  while (parts > 0 && !sounds(message.parts[parts - 1])) --parts;
  if (parts == 0) return {};
  EARNEST_RETURN_IF_ERROR(rendered(message, parts, first, model, options, piece));
  // All but what closes the message; of one that the template leaves out there is nothing.
  if (!piece->ids.empty()) piece->ids.pop_back();
  return {};
}

Status ids_of_answer(const std::string* reasoning, std::string_view reply, bool first,
                     const LoadedModel& model, const SessionOptions& options, Piece* piece) {
  Message message{"assistant", {Text{std::string(reply)}}, std::nullopt};
  if (reasoning != nullptr) message.reasoning = *reasoning;
  Rendered result;
  EARNEST_RETURN_IF_ERROR(render({message}, model.tokenizer(), rendering(options, first), &result));
  *piece = {std::move(result.ids), {}, false};
  return {};
}

Status ids_of_prompt(Prompt prompt, const std::string& prefill, const LoadedModel& model,
                     const SessionOptions& options, Piece* piece) {
  RenderOptions how = rendering(options, false);
  std::vector<Message> messages;
  if (prefill.empty()) {
    how.prompt = prompt;
  } else {
    how.continue_final = true;
    messages.push_back({"assistant", {Text{prefill}}, std::nullopt});
  }
  Rendered result;
  EARNEST_RETURN_IF_ERROR(render(messages, model.tokenizer(), how, &result));
  *piece = {std::move(result.ids), {}, result.inside_thought};
  return {};
}

}  // namespace earnest::engine
