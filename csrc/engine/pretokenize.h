// SPDX-License-Identifier: Apache-2.0
// Cutting a text into the pieces that byte pairs are merged within. The cuts of the model families are
// written as regular expressions in tokenizer.json; those known here are recognised by their exact text and
// matched by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "csrc/engine/unicode.h"

namespace earnest::engine {

enum class Cut : uint8_t {
  kDigits,  // each digit alone (SmolLM2, before kGpt2)
  kGpt2,    // words and numbers with the blank before them; the built-in expression of ByteLevel
  kQwen2,   // numbers digit by digit, line ends with the punctuation before them
  kLlama3,  // as kQwen2, but numbers by three digits
};

std::optional<Cut> cut_of(std::string_view regular_expression);

class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<Cut> cuts) : cuts_(std::move(cuts)) {}

  // Calls each(piece) for the pieces of valid UTF-8, from left to right; every byte is in one.
  template <typename Each>
  void split(std::string_view text, const Each& each) const {
    split(text, 0, each);
  }

 private:
  template <typename Each>
  void split(std::string_view text, size_t level, const Each& each) const {
    if (level == cuts_.size()) return each(text);
    while (!text.empty()) {
      const size_t length = first_piece(cuts_[level], text);
      split(text.substr(0, length), level + 1, each);
      text.remove_prefix(length);
    }
  }
  size_t first_piece(Cut cut, std::string_view text) const;  // its length in bytes, at least 1

  std::vector<Cut> cuts_;  // each within the pieces of the one before
  const unicode::Class* classes_ = unicode::class_table();
};

}  // namespace earnest::engine
