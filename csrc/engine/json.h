// SPDX-License-Identifier: Apache-2.0
// JSON (RFC 8259) of files and requests that are hostile until checked: strict, bounded, without recursion.
//
// A document keeps its text and one small node for each value (a tokenizer has half a million), in the order
// of the text. Values are cursors into it and live no longer than it does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/common/status.h"

namespace earnest::engine::json {

enum class Kind : uint8_t { kAbsent, kNull, kBool, kNumber, kString, kArray, kObject };

constexpr size_t kMaxBytes = size_t{256} << 20;
constexpr size_t kMaxDepth = 64;

class Document;

// A value, or "absent": what is asked of a member that is not there, or of another kind, is absent as well.
class Value {
 public:
  Value() = default;

  Kind kind() const;
  bool absent() const { return kind() == Kind::kAbsent; }
  std::optional<bool> boolean() const;
  std::optional<double> number() const;
  std::optional<int64_t> integer() const;  // a number without fraction and exponent, in range
  std::optional<std::string> string() const;
  std::string_view text() const;  // as it stands in the document, strings in their quotes

  // Of an object or array: how many members or items (0 for all else).
  size_t size() const;
  Value operator[](std::string_view key) const;  // the first member of that name

  // for (Value item : value.items()); for (auto [key, member] : value.members())
  class Items;
  class Members;
  Items items() const;
  Members members() const;

 private:
  friend class Document;
  Value(const Document* document, uint32_t node) : document_(document), node_(node) {}
  uint32_t end() const;

  const Document* document_ = nullptr;
  uint32_t node_ = 0;
};

class Document {
 public:
  // source: what the text is, for messages, such as a path.
  static Status parse(std::string text, const std::string& source, Document* document);
  Value root() const { return nodes_.empty() ? Value() : Value(this, 0); }

 private:
  friend class Value;
  friend class Parser;
  struct Node {
    uint32_t begin = 0, length = 0;  // in the text
    uint32_t end = 0;                // the node after this one and all inside it
    uint32_t size = 0;               // members or items
    Kind kind = Kind::kNull;
    bool escaped = false;  // a string with backslashes
  };
  std::string text_;
  std::vector<Node> nodes_;  // of a member: its key, then its value
};

class Value::Items {
 public:
  struct Iterator {
    const Document* document;
    uint32_t node;
    Value operator*() const { return Value(document, node); }
    Iterator& operator++();
    bool operator==(const Iterator& other) const { return node == other.node; }
  };
  Iterator begin() const { return first; }
  Iterator end() const { return last; }
  Iterator first, last;
};

class Value::Members {
 public:
  struct Iterator {
    const Document* document;
    uint32_t node;
    std::pair<std::string, Value> operator*() const;
    Iterator& operator++();
    bool operator==(const Iterator& other) const { return node == other.node; }
  };
  Iterator begin() const { return first; }
  Iterator end() const { return last; }
  Iterator first, last;
};

// text as a JSON string, in quotes.
std::string quoted(std::string_view text);

}  // namespace earnest::engine::json
