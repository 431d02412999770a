// SPDX-License-Identifier: Apache-2.0
// JSON, compact and on one line: json.object([&] { json.member("a", 1); }).
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

#include "csrc/engine/json.h"

namespace earnest::capi {

class JsonWriter {
 public:
  // Values: of an array or at the top one after the other; of an object each after its key.
  void null() { add("null"); }
  void value(bool flag) { add(flag ? "true" : "false"); }
  void value(std::string_view text) { add(engine::json::quoted(text)); }
  void value(const char* text) { value(std::string_view(text)); }
  template <std::integral Integer>
    requires(!std::same_as<Integer, bool>)
  void value(Integer number) {
    add(std::to_string(number));
  }

  template <typename Body>
  void object(const Body& body) {
    nested('{', body, '}');
  }
  template <typename Body>
  void array(const Body& body) {
    nested('[', body, ']');
  }

  JsonWriter& key(std::string_view name) {
    add(engine::json::quoted(name));
    text_ += ':';
    first_ = true;
    return *this;
  }
  template <typename Value>
  void member(std::string_view name, const Value& content) {
    key(name).value(content);
  }

  std::string& text() { return text_; }

 private:
  void add(std::string_view piece) {
    if (!first_) text_ += ',';
    text_ += piece;
    first_ = false;
  }
  template <typename Body>
  void nested(char open, const Body& body, char close) {
    if (!first_) text_ += ',';
    text_ += open;
    first_ = true;
    body();
    text_ += close;
    first_ = false;
  }

  std::string text_;
  bool first_ = true;  // no comma before what comes next
};

}  // namespace earnest::capi
