// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/tools.h"

#include <charconv>
#include <cmath>

#include "csrc/engine/json.h"

namespace earnest::engine {
namespace {

using json::Kind;
using json::Value;

// The shortest digits that give the number back; an exponent below 1e-4 and from 1e16 on (Python's repr).
std::string float_text(double value) {
  char digits[64];
  const double size = std::abs(value);
  const bool exponent = value != 0 && (size < 1e-4 || size >= 1e16);
  const auto format = exponent ? std::chars_format::scientific : std::chars_format::fixed;
  char* const end = std::to_chars(digits, digits + sizeof digits, value, format).ptr;
  std::string text(digits, end);
  if (!exponent && text.find('.') == text.npos) text += ".0";
  return text;
}

Status write(Value value, std::string* out);

Status write_number(Value value, std::string* out) {
  const std::string_view text = value.text();
  if (text.find_first_of(".eE") == text.npos) {
    out->append(text == "-0" ? "0" : text);
    return {};
  }
  const auto number = value.number();
  if (!number) return invalid_argument("tools", "a number", "one that fits a double", std::string(text));
  out->append(float_text(*number));
  return {};
}

Status write_list(Value value, std::string* out) {
  out->push_back('[');
  bool first = true;
  for (const Value item : value.items()) {
    if (!first) out->append(", ");
    first = false;
    const Status status = write(item, out);
    if (!status.ok()) return status;
  }
  out->push_back(']');
  return {};
}

Status write_object(Value value, std::string* out) {
  out->push_back('{');
  bool first = true;
  for (const auto& [name, member] : value.members()) {
    if (!first) out->append(", ");
    first = false;
    out->append(json::quoted(name)).append(": ");
    const Status status = write(member, out);
    if (!status.ok()) return status;
  }
  out->push_back('}');
  return {};
}

// As deep as json.h allows.
Status write(Value value, std::string* out) {
  switch (value.kind()) {
    case Kind::kNumber:
      return write_number(value, out);
    case Kind::kString:
      out->append(json::quoted(*value.string()));
      return {};
    case Kind::kArray:
      return write_list(value, out);
    case Kind::kObject:
      return write_object(value, out);
    default:
      out->append(value.text());
      return {};
  }
}

}  // namespace

Status tools_text(const std::string& schemas, std::string* text) {
  json::Document document;
  Status status = json::Document::parse(schemas, "tools", &document);
  if (!status.ok()) return status;
  if (document.root().kind() != Kind::kArray)
    return invalid_argument("tools", "schemas", "a JSON list", "another value");
  for (const Value tool : document.root().items()) {
    if (tool.kind() != Kind::kObject) {
      return invalid_argument("tools", "schemas", "a list of objects",
                              std::string(tool.text().substr(0, 20)));
    }
  }
  text->clear();
  return document.root().size() == 0 ? Status() : write(document.root(), text);
}

}  // namespace earnest::engine
