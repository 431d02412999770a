// SPDX-License-Identifier: Apache-2.0
// A chat completion request of OpenAI's shape, read from JSON that may be hostile. What it may say:
// README.md.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "csrc/capi/call.h"
#include "csrc/engine/answer.h"

namespace earnest::capi {

constexpr size_t kLongestRequest = size_t{64} << 20;  // bytes
constexpr size_t kMostMessages = 4096;
constexpr size_t kMostParts = 1024;  // of one message

using ChatPart = std::variant<std::string, std::vector<std::byte>>;  // text, or a WAV file

struct ChatMessage {
  std::string role;
  std::vector<ChatPart> parts;
  std::optional<std::string> reasoning;  // of an assistant's

  std::string text() const;  // its texts, a newline between
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  engine::AnswerOptions options;
  std::string model;  // as it was asked for; "" where nothing was
  std::string tools;
  bool raw = false;  // thought and reply as one text
};

Outcome read_chat_request(std::string_view text, ChatRequest* request);

}  // namespace earnest::capi
