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

inline std::string definition(const std::vector<Merge>& merges, const std::string& normalizer = "null",
                              const std::string& extra = "") {
  using earnest::engine::json::quoted;
  std::string vocab, list, added;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    vocab += (byte > 0 ? "," : "") + quoted(byte_level(std::string(1, static_cast<char>(byte)))) + ":" +
             std::to_string(byte);
  }
  for (const auto& [left, right] : merges) {
    vocab += "," + quoted(byte_level(left + right)) + ":" + std::to_string(next++);
    list += (list.empty() ? "" : ",") + quoted(byte_level(left) + " " + byte_level(right));
  }
  next = kFirstName;
  for (const char* name : kNames) {
    added += std::string(added.empty() ? "" : ",") + "{\"id\":" + std::to_string(next++) +
             ",\"content\":" + quoted(name) + ",\"special\":true,\"normalized\":false}";
  }
  return "{\"added_tokens\":[" + added + "],\"normalizer\":" + normalizer +
         ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
         "\"decoder\":{\"type\":\"ByteLevel\"}," +
         extra + "\"model\":{\"type\":\"BPE\",\"vocab\":{" + vocab + "},\"merges\":[" + list + "]}}";
}

}  // namespace small
