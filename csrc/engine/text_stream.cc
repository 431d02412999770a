// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/text_stream.h"

#include "csrc/engine/tokenizer.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";

}  // namespace

void Utf8Stream::push(std::string_view bytes, std::string* text) {
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_.append(bytes);
    bytes = joined;
  }
  const size_t waiting = unfinished(bytes);
  std::string_view rest = bytes.substr(0, bytes.size() - waiting);
  while (!rest.empty()) {
    const size_t valid = find_invalid(rest);
    text->append(rest.substr(0, valid));
    rest.remove_prefix(valid);
    if (rest.empty()) break;
    text->append(kReplacement);
    rest.remove_prefix(ill_formed(rest));
  }
  pending_.assign(bytes.substr(bytes.size() - waiting));
}

void Utf8Stream::finish(std::string* text) {
  if (!pending_.empty()) text->append(kReplacement);
  pending_.clear();
}

TextStream::TextStream(const Tokenizer& tokenizer, std::span<const std::string_view> keep)
    : tokenizer_(&tokenizer) {
  for (const std::string_view name : keep) {
    if (const auto id = tokenizer.special(name)) keep_.insert(*id);
  }
}

std::string TextStream::push(std::span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) stream_.push(tokenizer_->bytes(id, !keep_.contains(id)), &text);
  return text;
}

std::string TextStream::finish() {
  std::string text;
  stream_.finish(&text);
  return text;
}

}  // namespace earnest::engine
