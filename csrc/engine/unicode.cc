// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/unicode.h"

#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "csrc/engine/unicode_tables.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine::unicode {
namespace {

struct ClassTable {
  std::array<Class, kClassesEnd> of{};

  ClassTable() {
    const Classes all = classes();
    spread(all.letters, Class::kLetter);
    spread(all.numbers, Class::kNumber);
    spread(all.spaces, Class::kSpace);
  }
  void spread(std::span<const Range> ranges, Class value) {
    for (const Range& range : ranges) {
      for (char32_t c = range.first; c <= range.last && c < kClassesEnd; ++c) of[c] = value;
    }
  }
};

// Syllables of Hangul compose and come apart by arithmetic (The Unicode Standard, section 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr char32_t kLeadingCount = 19, kVowelCount = 21, kTrailingCount = 28;
constexpr char32_t kBlock = kVowelCount * kTrailingCount, kSyllableCount = kLeadingCount * kBlock;

bool between(char32_t c, char32_t first, char32_t count) { return c >= first && c - first < count; }

using Parts = std::pair<char32_t, char32_t>;  // the second is 0 where a character stands for one other

uint64_t key(char32_t first, char32_t second) { return uint64_t{first} << 32 | second; }

class NormalFormTable {
 public:
  NormalFormTable() : kind_(kEnd, 0) {
    const NormalForm form = normal_form();
    for (const ClassRange& range : form.combining_classes) {
      for (char32_t c = range.first; c <= range.last; ++c)
        kind_[c] = static_cast<uint8_t>(range.combining_class);
    }
    for (const Pair& pair : form.composites) {
      parts_[pair.composite] = {pair.first, pair.second};
      composites_[key(pair.first, pair.second)] = pair.composite;
      may_change(pair.second);
    }
    for (const Pair& pair : form.broken_pairs) {
      parts_[pair.composite] = {pair.first, pair.second};
      may_change(pair.composite);
    }
    size_t next = 0;
    for (const Range& range : form.single_runs) {
      for (char32_t c = range.first; c <= range.last; ++c) {
        parts_[c] = {form.singles[next++], 0};
        may_change(c);
      }
    }
    for (char32_t i = 0; i < kVowelCount; ++i) may_change(kVowels + i);
    for (char32_t i = 1; i < kTrailingCount; ++i) may_change(kTrailing + i);
  }

  // Whether a character stays as it is, whatever stands before it.
  bool stays(char32_t c) const { return c >= kEnd || kind_[c] == 0; }
  uint8_t combining_class(char32_t c) const { return c >= kEnd || kind_[c] == kStarter ? 0 : kind_[c]; }

  void decompose(char32_t c, std::u32string* out) const {
    if (between(c, kSyllables, kSyllableCount)) {
      const char32_t i = c - kSyllables;
      out->append({kLeading + i / kBlock, kVowels + i % kBlock / kTrailingCount});
      if (i % kTrailingCount != 0) out->push_back(kTrailing + i % kTrailingCount);
      return;
    }
    const auto found = parts_.find(c);
    if (found == parts_.end()) return out->push_back(c);
    decompose(found->second.first, out);
    if (found->second.second != 0) out->push_back(found->second.second);  // a second part is whole already
  }

  // The character that two compose to; 0 where they do not.
  char32_t composite(char32_t first, char32_t second) const {
    if (between(first, kLeading, kLeadingCount) && between(second, kVowels, kVowelCount)) {
      return kSyllables + ((first - kLeading) * kVowelCount + (second - kVowels)) * kTrailingCount;
    }
    if (between(first, kSyllables, kSyllableCount) && (first - kSyllables) % kTrailingCount == 0 &&
        between(second, kTrailing + 1, kTrailingCount - 1)) {
      return first + (second - kTrailing);
    }
    const auto found = composites_.find(key(first, second));
    return found == composites_.end() ? 0 : found->second;
  }

 private:
  static constexpr char32_t kEnd = 0x2FA1E;
  static constexpr uint8_t kStarter = 255;  // of class 0, but may change; no combining class is that high
  void may_change(char32_t c) {
    if (kind_[c] == 0) kind_[c] = kStarter;
  }

  std::vector<uint8_t> kind_;  // 0, a combining class, or kStarter
  std::unordered_map<char32_t, Parts> parts_;
  std::unordered_map<uint64_t, char32_t> composites_;
};

const NormalFormTable& normal_form_table() {
  static const NormalFormTable table;
  return table;
}

// Marks in the order of their classes; those of one class keep theirs.
void sort_marks(const NormalFormTable& table, std::u32string* text) {
  const auto is_mark = [&](char32_t c) { return table.combining_class(c) != 0; };
  auto from = text->begin();
  while ((from = std::find_if(from, text->end(), is_mark)) != text->end()) {
    const auto to = std::find_if_not(from, text->end(), is_mark);
    std::stable_sort(from, to, [&](char32_t a, char32_t b) {
      return table.combining_class(a) < table.combining_class(b);
    });
    from = to;
  }
}

// Joins each character to the last starter before it unless something between them stands in the way.
void compose_sorted(const NormalFormTable& table, std::u32string* text) {
  size_t length = 0, starter = text->npos;
  uint8_t previous = 0;  // the class of the last character kept
  for (const char32_t c : *text) {
    const uint8_t mark = table.combining_class(c);
    if (starter != text->npos && (starter + 1 == length || previous < mark)) {
      if (const char32_t joined = table.composite((*text)[starter], c)) {
        (*text)[starter] = joined;
        continue;
      }
    }
    if (mark == 0) starter = length;
    previous = mark;
    (*text)[length++] = c;
  }
  text->resize(length);
}

}  // namespace

const Class* class_table() {
  static const auto table = std::make_unique<const ClassTable>();
  return table->of.data();
}

bool is_newer_number(char32_t code_point) {
  const auto ranges = classes().newer_numbers;
  return std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) {
    return code_point >= range.first && code_point <= range.last;
  });
}

// A character that stays as it is begins a piece of the text that is normalised on its own.
std::string compose(std::string_view text) {
  const auto below_marks = [](char c) { return static_cast<uint8_t>(c) < 0xCC; };  // U+0300 begins with 0xCC
  if (std::all_of(text.begin(), text.end(), below_marks)) return std::string(text);
  const NormalFormTable& table = normal_form_table();
  std::string result;
  result.reserve(text.size());
  std::u32string piece;
  size_t begin = 0, at = 0;
  bool changes = false;
  const auto flush = [&] {
    if (changes) {
      piece.clear();
      while (begin < at) {
        const CodePoint c = decode(text.substr(begin));
        table.decompose(c.value, &piece);
        begin += c.bytes;
      }
      sort_marks(table, &piece);
      compose_sorted(table, &piece);
      for (const char32_t c : piece) append(c, &result);
    } else {
      result.append(text.substr(begin, at - begin));
    }
    begin = at;
    changes = false;
  };
  while (at < text.size()) {
    const CodePoint c = decode(text.substr(at));
    if (table.stays(c.value)) {
      flush();
    } else {
      changes = true;
    }
    at += c.bytes;
  }
  flush();
  return result;
}

}  // namespace earnest::engine::unicode
