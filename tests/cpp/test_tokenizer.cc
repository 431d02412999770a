// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <random>
#include <thread>

#include "csrc/engine/text_stream.h"
#include "csrc/engine/tokenizer.h"
#include "csrc/engine/unicode.h"
#include "csrc/engine/utf8.h"
#include "tests/cpp/check.h"
#include "tests/cpp/small_vocabulary.h"

using earnest::Status;
namespace engine = earnest::engine;
using engine::Tokenizer;
using Ids = std::vector<int32_t>;

namespace {

const std::vector<small::Merge> kMerges = {{"a", "b"}, {"ab", "c"}, {"b", "c"},
                                           {" ", "a"}, {" a", "b"}, {"a", "a"}};

Tokenizer parsed(const std::string& definition) {
  Tokenizer tokenizer;
  const Status status = Tokenizer::parse(definition, "small", &tokenizer);
  if (!status.ok()) std::printf("%s\n", status.message().c_str());
  CHECK(status.ok());
  return tokenizer;
}

Ids encoded(const Tokenizer& tokenizer, std::string_view text, bool allow_special = false) {
  Ids ids;
  CHECK(tokenizer.encode(text, &ids, allow_special).ok());
  return ids;
}

}  // namespace

TEST(merges_go_by_rank_then_from_the_left) {
  const Tokenizer tokenizer = parsed(small::definition(kMerges));
  CHECK(encoded(tokenizer, "abc") == Ids({257}));        // ab, then ab c
  CHECK(encoded(tokenizer, "xbc") == (Ids{'x', 258}));   // b c
  CHECK(encoded(tokenizer, "aaa") == (Ids{261, 'a'}));   // the left pair
  CHECK(encoded(tokenizer, " abc") == (Ids{' ', 257}));  // "a b" comes before " a", so " ab" is never made
  CHECK(encoded(tokenizer, " ab") == (Ids{' ', 256}));   // though it is a token
  CHECK(encoded(tokenizer, " ab") == (Ids{' ', 256}));   // also when that is remembered
  CHECK(encoded(tokenizer, "").empty());
}

// Words on both sides of the length where the way of merging changes.
TEST(long_words_are_merged_like_short_ones) {
  const Tokenizer tokenizer = parsed(small::definition(kMerges));
  for (size_t length = 1; length < 200; ++length) {
    Ids expected(length / 2, 261);
    if (length % 2 == 1) expected.push_back('a');
    CHECK(encoded(tokenizer, std::string(length, 'a')) == expected);
    std::string text;
    Ids tokens;
    for (size_t i = 0; i < length; ++i) {
      text += "abcbc";
      tokens.insert(tokens.end(), {257, 258});
    }
    CHECK(encoded(tokenizer, text) == tokens);
  }
  const auto began = std::chrono::steady_clock::now();
  CHECK(encoded(tokenizer, std::string(1 << 20, 'a')).size() == 1 << 19);
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(20));
}

TEST(names_are_text_unless_allowed) {
  const Tokenizer tokenizer = parsed(small::definition(kMerges));
  const int32_t eot = *tokenizer.special("<|EOT|>");
  CHECK(eot == small::kFirstName + 3 && tokenizer.is_special(eot) && !tokenizer.special("EOT"));
  for (const int32_t id : encoded(tokenizer, "<|EOT|>a<|EOT|>")) CHECK(id < 256);
  CHECK(encoded(tokenizer, "<|EOT|>ab<|EOT|<|EOT|>", true) ==
        (Ids{eot, 256, '<', '|', 'E', 'O', 'T', '|', eot}));
  CHECK(tokenizer.decode({eot, 256}) == "ab" && tokenizer.decode({eot, 256}, false) == "<|EOT|>ab");
  CHECK(tokenizer.has(eot) && !tokenizer.has(300) && !tokenizer.has(-1) && tokenizer.end() == 409);
  CHECK(tokenizer.decode({300, -1, 1 << 30}).empty());
}

TEST(what_is_no_utf8_is_refused) {
  const Tokenizer tokenizer = parsed(small::definition(kMerges));
  Ids ids;
  CHECK(tokenizer.encode("ab\xFF", &ids).message() ==
        "[tokenizer] text: expected UTF-8, got other bytes at byte 2");
  CHECK(ids.empty());
}

// Whatever the cuts, a stream gives the text that decoding it all gives, and whole characters only.
TEST(streams_hold_back_unfinished_characters) {
  const Tokenizer tokenizer = parsed(small::definition({}));
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    Ids ids;
    for (int i = 0; i < 12; ++i) {
      const uint32_t chance = static_cast<uint32_t>(random());
      const char32_t kinds[] = {chance % 128, 128 + chance % 1900, 0x4E00 + chance % 999,
                                0x1F600 + chance % 60};
      std::string character;
      engine::append(kinds[random() % 4], &character);
      if (random() % 8 == 0) character.pop_back();
      for (const char c : character) ids.push_back(static_cast<uint8_t>(c));
    }
    engine::TextStream stream(tokenizer);
    std::string text;
    for (size_t at = 0; at < ids.size();) {
      const size_t count = std::min<size_t>(random() % 4, ids.size() - at);
      const std::string piece = stream.push(std::span(ids).subspan(at, count));
      CHECK(engine::find_invalid(piece) == piece.size());
      text += piece;
      at += count;
    }
    text += stream.finish();
    CHECK(text == tokenizer.decode(ids));
  }
}

TEST(mistakes_are_counted_as_unicode_counts_them) {
  const Tokenizer tokenizer = parsed(small::definition({}));
  const auto decoded = [&](std::string_view bytes) {
    Ids ids;
    for (const char c : bytes) ids.push_back(static_cast<uint8_t>(c));
    return tokenizer.decode(ids);
  };
  const std::string r = "\uFFFD";
  CHECK(decoded("\xF0\x9F\x99") == r && decoded("\xF0\x9F\x41") == r + "A");
  CHECK(decoded("\xED\xA0\x80") == r + r + r && decoded("\xC0\xAF") == r + r);
  CHECK(decoded("a\xE2\x82"
                "b\xE2\x82\xAC") == "a" + r + "b\u20AC");
}

TEST(normal_form_composes) {
  const Tokenizer tokenizer = parsed(small::definition({}, "{\"type\":\"NFC\"}"));
  CHECK(tokenizer.normalized("e\u0301") == "\u00E9" && tokenizer.normalized("\u212B") == "\u00C5");
  CHECK(tokenizer.normalized("\u1112\u1161\u11ab") == "\uD55C");    // Hangul
  CHECK(tokenizer.normalized("\u0958") == "\u0915\u093C");          // excluded from composition
  CHECK(tokenizer.normalized("q\u0307\u0323") == "q\u0323\u0307");  // marks in the order of their classes
  CHECK(tokenizer.normalized("\u0301\u0301") == "\u0301\u0301");
  CHECK(parsed(small::definition({})).normalized("e\u0301") == "e\u0301");
}

TEST(many_threads_may_encode_at_once) {
  const Tokenizer tokenizer = parsed(small::definition(kMerges));
  const std::string text = "abc ab aa aaa abcbc bc";
  const Ids expected = encoded(parsed(small::definition(kMerges)), text);
  std::vector<std::thread> threads;
  std::vector<Ids> results(4);
  for (Ids& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        result.clear();
        if (!tokenizer.encode(text, &result).ok()) return;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const Ids& result : results) CHECK(result == expected);
}

// Any bytes of a file changed or cut off: a tokenizer or a refusal, and nothing read that is not there (the
// sanitizer build looks).
TEST(hostile_files_do_no_harm) {
  const std::string definition = small::definition(kMerges, "{\"type\":\"NFC\"}");
  std::mt19937 random(11);
  for (int i = 0; i < 3000; ++i) {
    std::string changed = definition;
    for (int n = 0; n < 3; ++n) changed[random() % changed.size()] = "0129-ab\",:[]{}\\ n"[random() % 17];
    if (random() % 4 == 0) changed.resize(random() % changed.size());
    Tokenizer tokenizer;
    const Status status = Tokenizer::parse(changed, "file", &tokenizer);
    CHECK(status.ok() == status.message().empty());
    Ids ids;
    if (status.ok() && tokenizer.encode("abc abcbc aaa e\u0301 <|EOT|>", &ids, true).ok())
      tokenizer.decode(ids, false);
  }
}
