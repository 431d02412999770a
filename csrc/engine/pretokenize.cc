// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/pretokenize.h"

#include <algorithm>
#include <string>

#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

using unicode::Class;

constexpr std::string_view kGpt2Expression =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Expression =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Expression =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

bool is_line_end(char c) { return c == '\r' || c == '\n'; }

// Reads a text by classes of characters; places are offsets in bytes.
class Reader {
 public:
  Reader(std::string_view text, const Class* classes) : text_(text), classes_(classes) {}

  size_t size() const { return text_.size(); }
  char byte(size_t at) const { return at < size() ? text_[at] : '\0'; }
  std::string_view from(size_t at) const { return text_.substr(at); }

  // The class of the character at a place, and the place behind it.
  Class at(size_t place, size_t* behind) const {
    const auto first = static_cast<uint8_t>(text_[place]);
    if (first < 0x80) {
      *behind = place + 1;
      return classes_[first];
    }
    const CodePoint found = decode(text_.substr(place));
    *behind = place + found.bytes;
    return unicode::class_of(classes_, found.value);
  }
  bool is(size_t place, Class wanted) const {
    size_t behind;
    return place < size() && at(place, &behind) == wanted;
  }
  // Behind the run of characters of a class that begins at a place, at most `most` of them.
  size_t run(size_t place, Class wanted, size_t most = SIZE_MAX) const {
    size_t behind;
    for (; most > 0 && place < size() && at(place, &behind) == wanted; --most) place = behind;
    return place;
  }

 private:
  std::string_view text_;
  const Class* classes_;
};

// 's 't 're 've 'm 'll 'd at the beginning: the length, or 0. Where case is ignored, "ſ" (U+017F) is an s as
// well.
size_t contraction(const Reader& text, bool ignore_case) {
  if (text.byte(0) != '\'') return 0;
  const auto letter = [&](size_t at) {
    const char c = text.byte(at);
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = letter(1), second = letter(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  if (first == 'l' && second == 'l') return 3;
  return ignore_case && text.from(1).starts_with("\u017F") ? 3 : 0;
}

// \s+(?!\S)|\s+ : white space, whose last character is left to the word that follows.
size_t spaces(const Reader& text) {
  size_t end = 0, last = 0, behind;
  while (end < text.size() && text.at(end, &behind) == Class::kSpace) {
    last = end;
    end = behind;
  }
  return end == text.size() || last == 0 ? end : last;
}

size_t gpt2(const Reader& text) {
  if (const size_t length = contraction(text, false)) return length;
  const size_t word = text.byte(0) == ' ' && text.size() > 1 ? 1 : 0;
  size_t behind;
  const Class kind = text.at(word, &behind);
  return kind == Class::kSpace ? spaces(text) : text.run(behind, kind);
}

size_t qwen2(const Reader& text, size_t most_digits) {
  if (const size_t length = contraction(text, true)) return length;
  size_t behind;
  const Class first = text.at(0, &behind);
  if (first == Class::kLetter) return text.run(behind, Class::kLetter);
  if (first == Class::kNumber) return text.run(0, Class::kNumber, most_digits);
  if (!is_line_end(text.byte(0)) && text.is(behind, Class::kLetter)) return text.run(behind, Class::kLetter);

  const size_t mark = text.byte(0) == ' ' ? 1 : 0;
  if (text.is(mark, Class::kOther)) {
    size_t end = text.run(mark, Class::kOther);
    while (end < text.size() && is_line_end(text.byte(end))) ++end;
    return end;
  }
  size_t end = text.run(0, Class::kSpace);  // as far as its last line end, if it has one
  while (end > 0 && !is_line_end(text.byte(end - 1))) --end;
  return end > 0 ? end : spaces(text);
}

// Whether the character at a place is a digit to the step "Digits".
bool is_digit(const Reader& text, size_t place, size_t* behind) {
  const Class kind = text.at(place, behind);
  if (kind != Class::kOther || *behind < place + 4) return kind == Class::kNumber;
  return unicode::is_newer_number(decode(text.from(place)).value);
}

size_t digits(const Reader& text) {
  size_t end;
  if (is_digit(text, 0, &end)) return end;
  size_t behind = end;
  while (end < text.size() && !is_digit(text, end, &behind)) end = behind;
  return end;
}

}  // namespace

std::optional<Cut> cut_of(std::string_view regular_expression) {
  if (regular_expression == kGpt2Expression) return Cut::kGpt2;
  if (regular_expression == kQwen2Expression) return Cut::kQwen2;
  if (regular_expression == kLlama3Expression) return Cut::kLlama3;
  return std::nullopt;
}

size_t PreTokenizer::first_piece(Cut cut, std::string_view text) const {
  const Reader reader(text, classes_);
  switch (cut) {
    case Cut::kDigits:
      return digits(reader);
    case Cut::kGpt2:
      return gpt2(reader);
    case Cut::kQwen2:
      return qwen2(reader, 1);
    case Cut::kLlama3:
      return qwen2(reader, 3);
  }
  return text.size();
}

}  // namespace earnest::engine
