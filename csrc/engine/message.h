// SPDX-License-Identifier: Apache-2.0
// What one turn of a dialogue is made of, once its audio has been measured.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace earnest::engine {

struct Text {
  std::string text;  // UTF-8, never searched for special tokens
};

struct Clip {
  std::vector<int64_t> frames;  // that the adaptor gives for each chunk of it
};

using Part = std::variant<Text, Clip>;

struct Message {
  std::string role;  // "user", "assistant", "system" or another word
  std::vector<Part> parts;
  std::optional<std::string>
      reasoning;  // of an assistant turn: none where none is known, "" where it is empty
};

}  // namespace earnest::engine
