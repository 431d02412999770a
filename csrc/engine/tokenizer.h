// SPDX-License-Identifier: Apache-2.0
// Text to ids and back, as a Hugging Face tokenizer.json says; equal to what the `tokenizers` package makes
// of it.
//
// Read are byte-level byte-pair vocabularies, which is what the published models have: a normaliser (none or
// NFC), the cuts of pretokenize.h, merges, added tokens. What the file asks for beyond that is refused by its
// name. Not looked at are "post_processor", "truncation" and "padding": whoever renders a dialogue places
// special tokens by name and knows how long a text may be.
//
// A tokenizer is not changed once it is read, and may be used by many threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/engine/byte_pairs.h"
#include "csrc/engine/name_matcher.h"
#include "csrc/engine/pretokenize.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// A token that stands beside the merges: a special one, in the language of this engine, whatever its flags.
struct AddedToken {
  std::string name;
  int32_t id = kNoToken;
  bool normalized = false;  // looked for in the text after normalisation instead of before
};

class Tokenizer {
 public:
  static constexpr int32_t kIdsEnd = 1 << 20;              // ids are below it
  static constexpr size_t kLongestText = size_t{1} << 30;  // bytes

  // path: a tokenizer.json, or the folder that has one.
  static Status load(const std::string& path, Tokenizer* tokenizer);
  // definition: the text of a tokenizer.json. source: what it is, for messages.
  static Status parse(std::string definition, const std::string& source, Tokenizer* tokenizer);

  // Appends the ids of a text (UTF-8). The names of special tokens are text like any other, unless they are
  // allowed: never allow them in what a user wrote.
  Status encode(std::string_view text, std::vector<int32_t>* ids, bool allow_special = false) const;

  // What encode sees of a text without special tokens: in normal form, and cut into pieces.
  std::string normalized(std::string_view text) const;
  std::vector<std::string> pieces(std::string_view text) const;

  // The bytes an id stands for: of special tokens none or, if asked, the name; of ids that name nothing,
  // none.
  std::string_view bytes(int32_t id, bool skip_special = true) const;
  // The text of ids. Bytes that are no UTF-8 become U+FFFD (TextStream waits for the rest of them).
  std::string decode(const std::vector<int32_t>& ids, bool skip_special = true) const;

  const std::vector<AddedToken>& added() const { return added_; }  // by rising ids
  std::optional<int32_t> special(std::string_view name) const;
  bool is_special(int32_t id) const { return by_id_.contains(id); }
  bool has(int32_t id) const { return is_special(id) || pairs_.vocabulary().has(id); }  // ids may have gaps
  int32_t end() const { return end_; }  // one more than the highest id

 private:
  friend class TokenizerFile;
  Status encode_pieces(std::string_view normal, std::vector<int32_t>* ids) const;

  BytePairs pairs_;
  PreTokenizer pre_tokenizer_;
  bool composes_ = false;  // normal form C
  bool refuses_bytes_ =
      false;  // a byte without a token is an error, because the file has an unknown token for it
  int32_t end_ = 0;
  std::vector<AddedToken> added_;
  std::unordered_map<std::string_view, int32_t> by_name_;
  std::unordered_map<int32_t, size_t> by_id_;
  NameMatcher names_, normal_names_;
};

}  // namespace earnest::engine
