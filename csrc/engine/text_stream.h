// SPDX-License-Identifier: Apache-2.0
// Ids in, text out, one call at a time: the bytes of an unfinished character wait for the rest of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>

namespace earnest::engine {

class Tokenizer;

// Bytes in, UTF-8 out. What is no UTF-8 becomes U+FFFD, once for each mistake (utf8.h, ill_formed).
class Utf8Stream {
 public:
  void push(std::string_view bytes, std::string* text);  // appends what is certain
  void finish(std::string* text);  // appends U+FFFD where a character was left unfinished

 private:
  std::string pending_;  // at most 3 bytes between calls
};

class TextStream {
 public:
  // keep: special tokens whose names are to appear in the text; all others give nothing. The tokenizer
  // outlives this.
  explicit TextStream(const Tokenizer& tokenizer, std::span<const std::string_view> keep = {});

  std::string push(std::span<const int32_t> ids);
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::unordered_set<int32_t> keep_;
  Utf8Stream stream_;
};

}  // namespace earnest::engine
