// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/json.h"

#include <charconv>

#include "csrc/engine/utf8.h"

namespace earnest::engine::json {
namespace {

constexpr std::string_view kSpace = " \t\n\r", kDigits = "0123456789";

// Four hexadecimal digits, or nothing.
std::optional<char32_t> hex4(std::string_view text) {
  uint32_t value = 0;
  if (text.size() < 4) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + 4, value, 16);
  if (error != std::errc() || end != text.data() + 4) return std::nullopt;
  return value;
}

struct Escape {
  char32_t value = kNoCodePoint;
  size_t bytes = 0;
};

// The code point of an escape, which begins with a backslash; a surrogate counts only as a pair.
Escape unescape(std::string_view text) {
  constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
  if (text.size() < 2) return {};
  if (text[1] != 'u') {
    const size_t at = kNames.find(text[1]);
    return at == kNames.npos ? Escape{} : Escape{static_cast<char32_t>(kMeanings[at]), 2};
  }
  const auto first = hex4(text.substr(2));
  if (!first || (*first >= 0xDC00 && *first < 0xE000)) return {};
  if (*first < 0xD800 || *first >= 0xE000) return {*first, 6};
  if (text.size() < 12 || text[6] != '\\' || text[7] != 'u') return {};
  const auto second = hex4(text.substr(8));
  if (!second || *second < 0xDC00 || *second >= 0xE000) return {};
  return {0x10000 + ((*first - 0xD800) << 10) + (*second - 0xDC00), 12};
}

// The length of a number at the beginning of text: -? int frac? exp?; 0 where there is none.
size_t number_length(std::string_view text) {
  size_t at = 0;
  const auto digits = [&] {
    const size_t from = at;
    at = std::min(text.find_first_not_of(kDigits, at), text.size());
    return at - from;
  };
  if (at < text.size() && text[at] == '-') ++at;
  const size_t first = at, whole = digits();
  if (whole == 0 || (whole > 1 && text[first] == '0')) return 0;
  if (at < text.size() && text[at] == '.') {
    ++at;
    if (digits() == 0) return 0;
  }
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    ++at;
    if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
    if (digits() == 0) return 0;
  }
  return at;
}

}  // namespace

// Walks over the text once; what is open stands on a stack of its own.
class Parser {
 public:
  Parser(Document* document, const std::string& source) : document_(*document), source_(source) {}

  Status run() {
    Status status = value();
    while (status.ok() && !open_.empty()) status = step();
    if (!status.ok()) return status;
    skip_space();
    return at_ == text().size() ? Status() : expected("the end of the text");
  }

 private:
  using Node = Document::Node;
  const std::string& text() const { return document_.text_; }
  bool done() const { return at_ == text().size(); }
  char here() const { return done() ? '\0' : text()[at_]; }
  void skip_space() { at_ = std::min(text().find_first_not_of(kSpace, at_), text().size()); }

  Status expected(const std::string& what) const {
    // A byte beyond ASCII is no text by itself, and messages are UTF-8.
    const auto byte = static_cast<uint8_t>(here());
    const std::string got = done()         ? "the end of the text"
                            : byte >= 0x80 ? "byte value " + std::to_string(byte)
                                           : quoted(text().substr(at_, 1));
    return invalid_argument("json", source_, what, got + " at byte " + std::to_string(at_));
  }

  // Between the values of what is open: a comma and the next value, or the end of it.
  Status step() {
    Node& node = document_.nodes_[open_.back()];
    const bool object = node.kind == Kind::kObject;
    skip_space();
    if (here() == (object ? '}' : ']') && !done()) {
      ++at_;
      node.length = static_cast<uint32_t>(at_) - node.begin;
      node.end = static_cast<uint32_t>(document_.nodes_.size());
      open_.pop_back();
      return {};
    }
    if (node.size > 0) {
      if (here() != ',') return expected(object ? "',' or '}'" : "',' or ']'");
      ++at_;
      skip_space();
    }
    ++node.size;
    if (!object) return value();
    if (here() != '"') return expected("the name of a member");
    Status status = string();
    if (!status.ok()) return status;
    skip_space();
    if (here() != ':') return expected("':'");
    ++at_;
    return value();
  }

  Status value() {
    skip_space();
    switch (here()) {
      case '"':
        return string();
      case '{':
        return begin(Kind::kObject);
      case '[':
        return begin(Kind::kArray);
      case 't':
        return word("true", Kind::kBool);
      case 'f':
        return word("false", Kind::kBool);
      case 'n':
        return word("null", Kind::kNull);
      default:
        break;
    }
    const size_t length = number_length(std::string_view(text()).substr(at_));
    if (length == 0) return expected("a value");
    add(Kind::kNumber, length, false);
    return {};
  }

  Status begin(Kind kind) {
    if (open_.size() == kMaxDepth) {
      return expected("values nested at most " + std::to_string(kMaxDepth) + " deep");
    }
    open_.push_back(static_cast<uint32_t>(document_.nodes_.size()));
    add(kind, 1, false);
    return {};
  }

  Status word(std::string_view name, Kind kind) {
    if (text().compare(at_, name.size(), name) != 0) return expected(std::string(name));
    add(kind, name.size(), false);
    return {};
  }

  Status string() {
    const std::string_view all = text();
    size_t end = at_ + 1;
    bool escaped = false;
    while (end < all.size() && all[end] != '"') {
      const std::string_view rest = all.substr(end);
      if (rest[0] == '\\') {
        const Escape escape = unescape(rest);
        if (escape.bytes == 0) return wrong_at(end, "an escape of JSON");
        escaped = true;
        end += escape.bytes;
      } else {
        const CodePoint found = decode(rest);
        if (found.value == kNoCodePoint) return wrong_at(end, "UTF-8");
        if (found.value < 0x20) return wrong_at(end, "an escape instead of a control character");
        end += found.bytes;
      }
    }
    if (end == all.size()) return wrong_at(end, "'\"'");
    add(Kind::kString, end + 1 - at_, escaped);
    return {};
  }

  Status wrong_at(size_t at, const std::string& what) {
    at_ = at;
    return expected(what);
  }

  void add(Kind kind, size_t length, bool escaped) {
    Node node;
    node.begin = static_cast<uint32_t>(at_);
    node.length = static_cast<uint32_t>(length);
    node.end = static_cast<uint32_t>(document_.nodes_.size()) + 1;
    node.kind = kind;
    node.escaped = escaped;
    document_.nodes_.push_back(node);
    at_ += length;
  }

  Document& document_;
  const std::string& source_;
  std::vector<uint32_t> open_;
  size_t at_ = 0;
};

Status Document::parse(std::string text, const std::string& source, Document* document) {
  if (text.size() > kMaxBytes) {
    return invalid_argument("json", source, "at most " + std::to_string(kMaxBytes) + " bytes",
                            std::to_string(text.size()));
  }
  Document parsed;
  parsed.text_ = std::move(text);
  Status status = Parser(&parsed, source).run();
  if (status.ok()) *document = std::move(parsed);
  return status;
}

Kind Value::kind() const { return document_ ? document_->nodes_[node_].kind : Kind::kAbsent; }

uint32_t Value::end() const { return document_->nodes_[node_].end; }

size_t Value::size() const { return document_ ? document_->nodes_[node_].size : 0; }

std::string_view Value::text() const {
  if (!document_) return {};
  const auto& node = document_->nodes_[node_];
  return std::string_view(document_->text_).substr(node.begin, node.length);
}

std::optional<bool> Value::boolean() const {
  if (kind() != Kind::kBool) return std::nullopt;
  return text() == "true";
}

std::optional<double> Value::number() const {
  if (kind() != Kind::kNumber) return std::nullopt;
  double value = 0;
  const std::string_view digits = text();
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return error == std::errc() ? std::optional(value) : std::nullopt;  // 1e999 is none
}

std::optional<int64_t> Value::integer() const {
  if (kind() != Kind::kNumber) return std::nullopt;
  int64_t value = 0;
  const std::string_view digits = text();
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  return whole ? std::optional(value) : std::nullopt;
}

std::optional<std::string> Value::string() const {
  if (kind() != Kind::kString) return std::nullopt;
  std::string_view rest = text().substr(1, text().size() - 2);
  if (!document_->nodes_[node_].escaped) return std::string(rest);
  std::string plain;
  while (!rest.empty()) {
    const size_t before = std::min(rest.find('\\'), rest.size());
    plain.append(rest.substr(0, before));
    rest.remove_prefix(before);
    if (rest.empty()) break;
    const Escape escape = unescape(rest);
    append(escape.value, &plain);
    rest.remove_prefix(escape.bytes);
  }
  return plain;
}

Value Value::operator[](std::string_view key) const {
  for (const auto& [name, member] : members()) {
    if (name == key) return member;
  }
  return {};
}

Value::Items Value::items() const {
  if (kind() != Kind::kArray) return {{nullptr, 0}, {nullptr, 0}};
  return {{document_, node_ + 1}, {document_, end()}};
}

Value::Members Value::members() const {
  if (kind() != Kind::kObject) return {{nullptr, 0}, {nullptr, 0}};
  return {{document_, node_ + 1}, {document_, end()}};
}

Value::Items::Iterator& Value::Items::Iterator::operator++() {
  node = Value(document, node).end();
  return *this;
}

std::pair<std::string, Value> Value::Members::Iterator::operator*() const {
  return {*Value(document, node).string(), Value(document, node + 1)};
}

Value::Members::Iterator& Value::Members::Iterator::operator++() {
  node = Value(document, node + 1).end();
  return *this;
}

std::string quoted(std::string_view text) {
  constexpr std::string_view kNames = "\"\\bfnrt", kMeanings = "\"\\\b\f\n\r\t", kHex = "0123456789abcdef";
  std::string result = "\"";
  for (const char c : text) {
    const size_t at = kMeanings.find(c);
    if (at != kMeanings.npos) {
      result += {'\\', kNames[at]};
    } else if (static_cast<uint8_t>(c) < 0x20) {
      result += {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 15]};
    } else {
      result += c;
    }
  }
  return result + "\"";
}

}  // namespace earnest::engine::json
