// SPDX-License-Identifier: Apache-2.0
#include <random>

#include "csrc/engine/reasoning.h"
#include "tests/cpp/check.h"

using namespace earnest::engine;

namespace {

struct Texts {
  std::string reasoning, reply;
  bool operator==(const Texts&) const = default;
};

void add(const std::vector<Delta>& deltas, Texts* texts) {
  for (const Delta& delta : deltas) {
    CHECK(!delta.text.empty());
    (delta.channel == Channel::kReasoning ? texts->reasoning : texts->reply) += delta.text;
  }
}

Texts split(std::string_view text, bool inside) {
  ReasoningStream stream(inside);
  Texts texts;
  add(stream.push(text), &texts);
  add(stream.finish(), &texts);
  return texts;
}

}  // namespace

TEST(completions_come_apart) {
  CHECK(split("<think>\nlow voice\n</think>\nSeven.", false) == (Texts{"low voice", "Seven."}));
  CHECK(split("low voice\n</think>\n\nSeven.", true) == (Texts{"low voice", "Seven."}));
  CHECK(split("\u3000\n<think>low</think>Seven.", false) == (Texts{"low", "Seven."}));
  CHECK(split("  Seven <think>", false) == (Texts{"", "  Seven <think>"}));
  CHECK(split("<thin", false) == (Texts{"", "<thin"}));
  CHECK(split("never closed\n</thi", true) == (Texts{"never closed\n</thi", ""}));
  CHECK(split("a</think>b</think>c", true) == (Texts{"a", "b</think>c"}));
  CHECK(split("", true) == Texts{} && split(" \n", false) == (Texts{"", " \n"}));
}

TEST(cutting_changes_nothing) {
  const char* words[] = {"<think>", "</think>", "\n", "<", "</", "think", ">", " ", "\u2003", "low"};
  std::mt19937 random(5);
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> pieces;
    std::string text;
    for (size_t i = random() % 9; i > 0; --i) pieces.push_back(words[random() % 10]);
    for (const auto& piece : pieces) text += piece;
    for (const bool inside : {false, true}) {
      ReasoningStream stream(inside);
      Texts texts;
      for (const auto& piece : pieces) add(stream.push(piece), &texts);
      add(stream.finish(), &texts);
      CHECK(texts == split(text, inside));
    }
  }
}
