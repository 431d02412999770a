// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/tokenizer.h"

#include "csrc/engine/text_stream.h"
#include "csrc/engine/unicode.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

// The names that a matcher finds in a text, and what is between them: rest(text) and name(id), from left to
// right.
template <typename Rest, typename Name>
Status split_at_names(const NameMatcher& matcher, std::string_view text, const Rest& rest, const Name& name) {
  for (size_t at = 0; at < text.size();) {
    const NameMatcher::Match found = matcher.find(text, at);
    if (found.begin > at) {
      const Status status = rest(text.substr(at, found.begin - at));
      if (!status.ok()) return status;
    }
    if (found.id >= 0) name(found.id);
    at = found.end;
  }
  return {};
}

}  // namespace

Status Tokenizer::encode(std::string_view text, std::vector<int32_t>* ids, bool allow_special) const {
  if (text.size() > kLongestText) {
    return invalid_argument("tokenizer", "text", "at most " + std::to_string(kLongestText) + " bytes",
                            std::to_string(text.size()));
  }
  if (const size_t wrong = find_invalid(text); wrong < text.size()) {
    return invalid_argument("tokenizer", "text", "UTF-8", "other bytes at byte " + std::to_string(wrong));
  }
  if (!allow_special) return composes_ ? encode_pieces(normalized(text), ids) : encode_pieces(text, ids);
  const auto name = [&](int32_t id) { ids->push_back(id); };
  const auto pieces = [&](std::string_view rest) { return encode_pieces(rest, ids); };
  const auto outside = [&](std::string_view rest) {
    return split_at_names(normal_names_, normalized(rest), pieces, name);
  };
  return split_at_names(names_, text, outside, name);
}

std::string Tokenizer::normalized(std::string_view text) const {
  return composes_ ? unicode::compose(text) : std::string(text);
}

std::vector<std::string> Tokenizer::pieces(std::string_view text) const {
  std::vector<std::string> result;
  pre_tokenizer_.split(normalized(text), [&](std::string_view piece) { result.emplace_back(piece); });
  return result;
}

Status Tokenizer::encode_pieces(std::string_view normal, std::vector<int32_t>* ids) const {
  if (refuses_bytes_) {
    for (const char c : normal) {
      if (pairs_.has_byte(static_cast<uint8_t>(c))) continue;
      return invalid_argument("tokenizer", "text", "bytes that the vocabulary has a token for",
                              "the byte " + std::to_string(static_cast<uint8_t>(c)));
    }
  }
  pre_tokenizer_.split(normal, [&](std::string_view piece) { pairs_.encode(piece, ids); });
  return {};
}

std::string_view Tokenizer::bytes(int32_t id, bool skip_special) const {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return pairs_.vocabulary().bytes(id);
  return skip_special ? std::string_view() : std::string_view(added_[found->second].name);
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  Utf8Stream stream;
  std::string text;
  for (const int32_t id : ids) stream.push(bytes(id, skip_special), &text);
  stream.finish(&text);
  return text;
}

std::optional<int32_t> Tokenizer::special(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace earnest::engine
