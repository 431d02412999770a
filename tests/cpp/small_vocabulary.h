// SPDX-License-Identifier: Apache-2.0
// The text of a small tokenizer.json: the 256 bytes (their ids are their values), some merges, the family's
// names.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "csrc/engine/json.h"
#include "csrc/engine/utf8.h"

namespace small {

constexpr const char* kNames[] = {"<|endoftext|>", "<|im_end|>",    "<|BOT|>", "<|EOT|>", "<audio_start>",
                                  "<audio_end>",   "<audio_patch>", "<think>", "</think>"};
constexpr int kFirstName = 400;

inline std::string byte_level(std::string_view bytes) {
  std::string token;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
    char32_t character = byte;
    if (!printable) character = 256 + (byte <= 32 ? byte : byte <= 160 ? byte - 127 + 33 : 67);
    earnest::engine::append(character, &token);
  }
  return token;
}

using Merge = std::pair<std::string, std::string>;

inline std::string definition(const std::vector<Merge>& merges, const std::string& normalizer = "null") {
  using earnest::engine::json::quoted;
  std::string vocab, list, added;
  const auto token = [&](std::string_view bytes, int id) {
    if (id > 0) vocab += ',';
    vocab.append(quoted(byte_level(bytes))).append(":").append(std::to_string(id));
  };
  int next = 0;
  for (; next < 256; ++next) token(std::string(1, static_cast<char>(next)), next);
  for (const auto& [left, right] : merges) {
    token(left + right, next++);
    if (!list.empty()) list += ',';
    list += quoted(byte_level(left) + " " + byte_level(right));
  }
  next = kFirstName;
  for (const char* name : kNames) {
    if (!added.empty()) added += ',';
    added.append("{\"id\":").append(std::to_string(next++)).append(",\"content\":").append(quoted(name));
    added.append(",\"special\":true,\"normalized\":false}");
  }
  std::string text = "{\"added_tokens\":[";
  text.append(added).append("],\"normalizer\":").append(normalizer);
  text.append(",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},");
  text.append("\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
  return text.append(vocab).append("},\"merges\":[").append(list).append("]}}");
}

}  // namespace small
