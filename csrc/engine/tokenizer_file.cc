// SPDX-License-Identifier: Apache-2.0
// Reading tokenizer.json. What is absent has the meaning that the `tokenizers` package gives it; what asks
// for something that is not built here is refused, and so is what contradicts itself.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <unordered_map>

#include "csrc/engine/byte_level.h"
#include "csrc/engine/json.h"
#include "csrc/engine/tokenizer.h"
#include "csrc/engine/unicode.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

using json::Kind;
using json::Value;

// A value as a message shows it: its beginning, or that there is none.
std::string shown(Value value) {
  constexpr size_t kMost = 60;
  if (value.absent()) return "nothing";
  std::string_view text = value.text();
  if (text.size() <= kMost) return std::string(text);
  text = text.substr(0, kMost);
  text.remove_suffix(unfinished(text));
  return std::string(text) + "...";
}

bool nothing(Value value) { return value.absent() || value.kind() == Kind::kNull; }

}  // namespace

// The steps of Tokenizer::parse; each reads one part of the file.
class TokenizerFile {
 public:
  TokenizerFile(Value root, const std::string& source, Tokenizer* out)
      : root_(root), source_(source), out_(*out) {}

  Status read() {
    if (root_.kind() != Kind::kObject) return wrong("", "an object", root_);
    for (const auto step :
         {&TokenizerFile::read_normalizer, &TokenizerFile::read_pre_tokenizer, &TokenizerFile::read_decoder,
          &TokenizerFile::read_model_options, &TokenizerFile::read_added, &TokenizerFile::read_vocabulary,
          &TokenizerFile::read_merges, &TokenizerFile::read_unknown}) {
      Status status = (this->*step)();
      if (!status.ok()) return status;
    }
    return {};
  }

 private:
  Status wrong(const std::string& where, const std::string& expected, const std::string& got) const {
    return invalid_argument("tokenizer", where.empty() ? source_ : source_ + " " + where, expected, got);
  }
  Status wrong(const std::string& where, const std::string& expected, Value got) const {
    return wrong(where, expected, shown(got));
  }
  Status not_built(const std::string& where, const std::string& expected, Value got) const {
    return unsupported("tokenizer", source_ + " " + where, expected, shown(got));
  }

  // The steps of a part that may be one step or a Sequence of them, which may nest.
  Status flatten(Value part, const std::string& where, const char* key, std::vector<Value>* steps) const {
    if (nothing(part)) return {};
    if (part.kind() != Kind::kObject) return wrong(where, "an object or null", part);
    if (part["type"].string() != "Sequence") {
      steps->push_back(part);
      return {};
    }
    if (part[key].kind() != Kind::kArray) return wrong(where + "." + key, "a list", part[key]);
    for (const Value step : part[key].items()) {
      const Status status = flatten(step, where + "." + key, key, steps);
      if (!status.ok()) return status;
    }
    return {};
  }

  Status read_normalizer() {
    std::vector<Value> steps;
    const Status status = flatten(root_["normalizer"], "normalizer", "normalizers", &steps);
    if (!status.ok()) return status;
    for (const Value step : steps) {
      if (step["type"].string() != "NFC")
        return not_built("normalizer.type", "\"NFC\" or no normalizer", step["type"]);
      out_.composes_ = true;
    }
    return {};
  }

  Status read_pre_tokenizer() {
    std::vector<Value> steps;
    Status status = flatten(root_["pre_tokenizer"], "pre_tokenizer", "pretokenizers", &steps);
    if (!status.ok()) return status;
    if (steps.empty() || steps.back()["type"].string() != "ByteLevel") {
      return not_built("pre_tokenizer", "one that ends with ByteLevel", root_["pre_tokenizer"]);
    }
    std::vector<Cut> cuts;
    for (size_t i = 0; i < steps.size(); ++i) {
      status = read_cut(steps[i], i + 1 == steps.size(), &cuts);
      if (!status.ok()) return status;
    }
    out_.pre_tokenizer_ = PreTokenizer(std::move(cuts));
    return {};
  }

  Status read_cut(Value step, bool last, std::vector<Cut>* cuts) const {
    const auto type = step["type"].string();
    if (type == "ByteLevel" && last) {
      if (step["add_prefix_space"].boolean().value_or(true)) {
        return not_built("pre_tokenizer.add_prefix_space", "false", step["add_prefix_space"]);
      }
      if (step["use_regex"].boolean().value_or(true)) cuts->push_back(Cut::kGpt2);
      return {};
    }
    if (type == "Digits") {
      if (step["individual_digits"].boolean() != true) {
        return not_built("pre_tokenizer.individual_digits", "true", step["individual_digits"]);
      }
      cuts->push_back(Cut::kDigits);
      return {};
    }
    if (type != "Split") {
      return not_built("pre_tokenizer.type", "\"Split\", \"Digits\" or, last, \"ByteLevel\"", step["type"]);
    }
    if (step["behavior"].string() != "Isolated" || step["invert"].boolean().value_or(false)) {
      return not_built("pre_tokenizer", "\"behavior\": \"Isolated\", \"invert\": false", step);
    }
    const auto cut = cut_of(step["pattern"]["Regex"].string().value_or(""));
    if (!cut)
      return not_built("pre_tokenizer.pattern", "the Regex of GPT-2, Qwen2 or Llama 3", step["pattern"]);
    cuts->push_back(*cut);
    return {};
  }

  Status read_decoder() {
    std::vector<Value> steps;
    const Status status = flatten(root_["decoder"], "decoder", "decoders", &steps);
    if (!status.ok()) return status;
    if (steps.size() == 1 && steps[0]["type"].string() == "ByteLevel") return {};
    return not_built("decoder", "ByteLevel", root_["decoder"]);
  }

  Status read_model_options() {
    model_ = root_["model"];
    if (model_.kind() != Kind::kObject) return wrong("model", "an object", model_);
    if (model_["type"].string() != "BPE") return not_built("model.type", "\"BPE\"", model_["type"]);
    for (const std::string name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!nothing(model_[name]) && model_[name].string() != "") {
        return not_built("model." + name, "null", model_[name]);
      }
    }
    if (!nothing(model_["dropout"]) && model_["dropout"].number() != 0) {
      return not_built("model.dropout", "null", model_["dropout"]);
    }
    for (const std::string name : {"byte_fallback", "ignore_merges"}) {
      if (!nothing(model_[name]) && !model_[name].boolean())
        return wrong("model." + name, "true or false", model_[name]);
    }
    if (model_["byte_fallback"].boolean() == true) {
      return not_built("model.byte_fallback", "false", model_["byte_fallback"]);
    }
    return {};
  }

  Status read_id(const std::string& where, Value value, int32_t* id) const {
    const auto number = value.integer();
    if (!number || *number < 0 || *number >= Tokenizer::kIdsEnd) {
      return wrong(where, "a whole number from 0 to " + std::to_string(Tokenizer::kIdsEnd - 1), value);
    }
    *id = static_cast<int32_t>(*number);
    out_.end_ = std::max(out_.end_, *id + 1);
    return {};
  }

  Status read_added() {
    const Value list = root_["added_tokens"];
    if (!nothing(list) && list.kind() != Kind::kArray) return wrong("added_tokens", "a list", list);
    out_.added_.reserve(list.size());
    for (const Value item : list.items()) {
      const std::string where = "added_tokens[" + std::to_string(out_.added_.size()) + "]";
      AddedToken token;
      const auto name = item["content"].string();
      if (!name || name->empty() || name->size() > NameMatcher::kLongestName) {
        return wrong(where + ".content",
                     "a name of at most " + std::to_string(NameMatcher::kLongestName) + " bytes",
                     item["content"]);
      }
      token.name = *name;
      Status status = read_id(where + ".id", item["id"], &token.id);
      if (!status.ok()) return status;
      for (const std::string flag : {"single_word", "lstrip", "rstrip"}) {
        if (item[flag].boolean().value_or(false)) return not_built(where + "." + flag, "false", item[flag]);
      }
      const bool special = item["special"].boolean().value_or(false);
      token.normalized = item["normalized"].boolean().value_or(!special);
      out_.added_.push_back(std::move(token));
    }
    return index_added();
  }

  Status index_added() {
    std::sort(out_.added_.begin(), out_.added_.end(),
              [](const auto& a, const auto& b) { return a.id < b.id; });
    for (size_t i = 0; i < out_.added_.size(); ++i) {
      const AddedToken& token = out_.added_[i];
      if (!out_.by_id_.emplace(token.id, i).second) {
        return wrong("added_tokens", "each id once", std::to_string(token.id) + " twice");
      }
      if (!out_.by_name_.emplace(token.name, token.id).second) {
        return wrong("added_tokens", "each name once", json::quoted(token.name) + " twice");
      }
      if (token.normalized) {
        out_.normal_names_.add(out_.composes_ ? unicode::compose(token.name) : token.name, token.id);
      } else {
        out_.names_.add(token.name, token.id);
      }
    }
    return {};
  }

  // Tokens that are added tokens as well stay out: what is not in the vocabulary, no text can become.
  Status read_vocabulary() {
    const Value list = model_["vocab"];
    if (list.kind() != Kind::kObject) return wrong("model.vocab", "an object", list);
    vocabulary_.reserve(list.size());
    std::string bytes;
    for (const auto& [token, value] : list.members()) {
      int32_t id;
      const Status status = read_id("model.vocab " + json::quoted(token), value, &id);
      if (!status.ok()) return status;
      if (const auto added = out_.by_name_.find(token); added != out_.by_name_.end()) {
        if (added->second == id) continue;
        return wrong("model.vocab " + json::quoted(token), "the id of the added token of that name", value);
      }
      if (out_.by_id_.contains(id))
        return wrong("model.vocab", "each id once", std::to_string(id) + " twice");
      // What is written in other characters than those of bytes can be decoded, but no merge leads to it.
      const bool reachable = from_byte_level(token, &bytes);
      const auto result = reachable ? vocabulary_.add(id, bytes) : vocabulary_.add_unreachable(id, token);
      if (result == Vocabulary::Added::kIdTaken) {
        return wrong("model.vocab", "each id once", std::to_string(id) + " twice");
      }
      if (result == Vocabulary::Added::kBytesTaken) {
        return wrong("model.vocab", "each token once", json::quoted(token) + " twice");
      }
    }
    return {};
  }

  Status read_merges() {
    const Value list = model_["merges"];
    if (list.kind() != Kind::kArray) return wrong("model.merges", "a list", list);
    Merges merges;
    merges.reserve(list.size());
    uint32_t rank = 0;
    for (const Value item : list.items()) {
      const Status status = read_merge(item, rank, &merges);
      if (!status.ok()) return status;
      ++rank;
    }
    out_.pairs_ = BytePairs(std::move(vocabulary_), std::move(merges),
                            model_["ignore_merges"].boolean().value_or(false));
    return {};
  }

  // "left right" or ["left", "right"].
  Status read_merge(Value item, uint32_t rank, Merges* merges) {
    std::string left, right;
    if (const auto joined = item.string()) {
      const size_t blank = joined->find(' ');
      if (blank != joined->npos && joined->find(' ', blank + 1) == joined->npos) {
        left = joined->substr(0, blank);
        right = joined->substr(blank + 1);
      }
    } else if (item.kind() == Kind::kArray && item.size() == 2) {
      auto part = item.items().begin();
      left = (*part).string().value_or("");
      ++part;
      right = (*part).string().value_or("");
    }
    const auto where = [&] { return "model.merges[" + std::to_string(rank) + "]"; };
    if (left.empty() || right.empty()) return wrong(where(), "two tokens, \"a b\" or [\"a\", \"b\"]", item);
    int32_t tokens[3];
    const std::string names[3] = {left, right, left + right};
    for (int i = 0; i < 3; ++i) {
      tokens[i] = from_byte_level(names[i], &bytes_) ? vocabulary_.find(bytes_) : kNoToken;
      if (tokens[i] == kNoToken) {
        return wrong(where(), "tokens of the vocabulary that are written in bytes", json::quoted(names[i]));
      }
    }
    merges->set(tokens[0], tokens[1], {rank, tokens[2]});
    return {};
  }

  // A token for what the vocabulary cannot say: never needed where every byte has one. Where it is a special
  // token, it must not come from text.
  Status read_unknown() {
    const Value unknown = model_["unk_token"];
    if (nothing(unknown)) return {};
    bool complete = true;
    for (int byte = 0; byte < 256; ++byte) complete &= out_.pairs_.has_byte(static_cast<uint8_t>(byte));
    if (!complete && !out_.special(unknown.string().value_or(""))) {
      return not_built("model.unk_token", "null, a special token, or a token for every byte", unknown);
    }
    out_.refuses_bytes_ = !complete;
    return {};
  }

  Value root_, model_;
  const std::string& source_;
  Tokenizer& out_;
  Vocabulary vocabulary_;
  std::string bytes_;
};

Status Tokenizer::parse(std::string definition, const std::string& source, Tokenizer* tokenizer) {
  json::Document document;
  Status status = json::Document::parse(std::move(definition), source, &document);
  if (!status.ok()) return status;
  Tokenizer read;
  status = TokenizerFile(document.root(), source, &read).read();
  if (status.ok()) *tokenizer = std::move(read);
  return status;
}

Status Tokenizer::load(const std::string& path, Tokenizer* tokenizer) {
  std::error_code error;
  const std::filesystem::path given(path);
  const auto file = std::filesystem::is_directory(given, error) ? given / "tokenizer.json" : given;
  const auto size = std::filesystem::file_size(file, error);
  if (error)
    return invalid_argument("tokenizer", "path", "a tokenizer.json", path + " (" + error.message() + ")");
  if (size > json::kMaxBytes) {
    return invalid_argument("tokenizer", path, "at most " + std::to_string(json::kMaxBytes) + " bytes",
                            std::to_string(size));
  }
  std::string text(size, '\0');
  std::ifstream stream(file, std::ios::binary);
  if (!stream.read(text.data(), static_cast<std::streamsize>(size))) {
    return invalid_argument("tokenizer", "path", "a file that can be read", file.string());
  }
  return parse(std::move(text), file.string(), tokenizer);
}

}  // namespace earnest::engine
