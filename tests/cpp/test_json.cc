// SPDX-License-Identifier: Apache-2.0
#include <random>
#include <vector>

#include "csrc/engine/json.h"
#include "csrc/engine/utf8.h"
#include "tests/cpp/check.h"

using earnest::Status;
namespace engine = earnest::engine;
namespace json = earnest::engine::json;

namespace {

json::Document parsed(const std::string& text) {
  json::Document document;
  const Status status = json::Document::parse(text, "text", &document);
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
  CHECK(status.ok());
  return document;
}

std::string refusal(const std::string& text) {
  json::Document document;
  return json::Document::parse(text, "a.json", &document).message();
}

}  // namespace

TEST(values_of_every_kind_are_read) {
  const json::Document document =
      parsed(" {\"a\": [1, -2.5e3, \"x\\u00e9\\ud83d\\ude00\\n\"], \"b\": {}, \"c\": null, \"d\": true} ");
  const json::Value root = document.root();
  CHECK(root.size() == 4 && root["b"].kind() == json::Kind::kObject && root["b"].size() == 0);
  CHECK(root["c"].kind() == json::Kind::kNull && root["d"].boolean() == true);
  CHECK(root["none"].absent() && root["none"]["deeper"].absent() && !root["none"].string());
  std::vector<json::Value> items;
  for (json::Value item : root["a"].items()) items.push_back(item);
  CHECK(items.size() == 3 && root["a"].size() == 3);
  CHECK(items[0].integer() == 1 && items[0].number() == 1.0);
  CHECK(!items[1].integer() && items[1].number() == -2500.0);
  CHECK(items[2].string() == "x\xC3\xA9\xF0\x9F\x98\x80\n");
  std::string names;
  for (auto [name, member] : root.members()) names += name + std::to_string(member.size());
  CHECK(names == "a3b0c0d0");
}

TEST(numbers_are_exact_or_absent) {
  CHECK(parsed("9223372036854775807").root().integer() == INT64_MAX);
  CHECK(!parsed("9223372036854775808").root().integer());
  CHECK(!parsed("1e999").root().number());
  CHECK(!parsed("1.0").root().integer());
  for (const char* wrong : {"01", "+1", "1.", ".5", "1e", "-", "0x1", "NaN", "Infinity", "- 1"}) {
    CHECK(!refusal(wrong).empty());
  }
}

TEST(what_breaks_the_grammar_is_refused_with_its_place) {
  CHECK(refusal("[1,]") == "[json] a.json: expected a value, got \"]\" at byte 3");
  CHECK(refusal("{\"a\" 1}") == "[json] a.json: expected ':', got \"1\" at byte 5");
  CHECK(refusal("[1") == "[json] a.json: expected ',' or ']', got the end of the text at byte 2");
  CHECK(refusal("{\"a\":1]") == "[json] a.json: expected ',' or '}', got \"]\" at byte 6");
  for (const std::string wrong : {"",
                                  " ",
                                  "[",
                                  "]",
                                  "{]",
                                  "[}",
                                  "{\"a\"}",
                                  "{,}",
                                  "[,1]",
                                  "{\"a\":}",
                                  "{1:2}",
                                  "[1 2]",
                                  "1 2",
                                  "tru",
                                  "nul",
                                  "\"",
                                  "\"\\\"",
                                  "\"\\x\"",
                                  "\"\\u12\"",
                                  "\"\\ud800\"",
                                  "\"\\udc00\"",
                                  "\"\\ud800\\u0041\"",
                                  "\"\n\"",
                                  "\"\xC0\x80\"",
                                  "\"\xED\xA0\x80\"",
                                  "\"\xF5\x80\x80\x80\"",
                                  "\"\xE2\x82\"",
                                  "'a'",
                                  "[1]x",
                                  "{\"a\":1,}"}) {
    CHECK(!refusal(wrong).empty());
  }
  CHECK(!refusal(std::string("[1]\0", 4)).empty());
}

TEST(depth_is_bounded) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(refusal(nested(json::kMaxDepth)).empty());
  CHECK(!refusal(nested(json::kMaxDepth + 1)).empty());
  CHECK(!refusal(std::string(1 << 20, '[')).empty());
}

// Every beginning of a document is refused, and any byte changed gives a document or a refusal: nothing reads
// beyond the text (the sanitizer build looks).
TEST(hostile_bytes_do_no_harm) {
  const std::string text = "{\"a\":[1,2.5,\"x\\u00e9\\n\",{\"b\":[true,false,null]}],\"c\":\"\xE2\x82\xAC\"}";
  for (size_t length = 0; length < text.size(); ++length) CHECK(!refusal(text.substr(0, length)).empty());
  std::mt19937 random(7);
  for (int i = 0; i < 20000; ++i) {
    std::string changed = text;
    for (int n = 0; n < 3; ++n) changed[random() % changed.size()] = static_cast<char>(random() % 256);
    json::Document document;
    if (!json::Document::parse(changed, "text", &document).ok()) continue;
    for (auto [name, member] : document.root().members()) (void)member.string();
  }
}

TEST(quoted_strings_are_read_back) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  all += "\xC3\xA9";
  CHECK(parsed(json::quoted(all)).root().string() == all);
}

TEST(utf8_is_strict) {
  for (char32_t c : {0u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xD7FFu, 0xE000u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
    std::string text;
    engine::append(c, &text);
    const engine::CodePoint found = engine::decode(text);
    CHECK(found.value == c && found.bytes == text.size());
    CHECK(engine::find_invalid(text) == text.size());
    for (size_t length = 1; length < text.size(); ++length) {
      CHECK(engine::find_invalid(text.substr(0, length)) == 0);
      CHECK(engine::unfinished("ab" + text.substr(0, length)) == length);
    }
    CHECK(engine::unfinished("ab" + text) == 0);
  }
  for (const char* wrong :
       {"\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xFF"}) {
    CHECK(engine::find_invalid(wrong) == 0);
    CHECK(engine::unfinished(wrong) == 0);
  }
  CHECK(engine::find_invalid("ab\xE2\x28\xA1") == 2);
}
