// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/utf8.h"

#include <algorithm>

namespace earnest::engine {
namespace {

uint8_t byte(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

// What a first byte promises: the bytes of the code point, and the range of the second of them.
struct Lead {
  size_t bytes = 0;  // 0: no code point begins so
  uint8_t low = 0x80, high = 0xBF;
};

Lead lead_of(uint8_t first) {
  if (first < 0x80) return {1};
  if (first < 0xC2) return {};
  if (first < 0xE0) return {2};
  if (first == 0xE0) return {3, 0xA0};
  if (first == 0xED) return {3, 0x80, 0x9F};
  if (first < 0xF0) return {3};
  if (first == 0xF0) return {4, 0x90};
  if (first < 0xF4) return {4};
  if (first == 0xF4) return {4, 0x80, 0x8F};
  return {};
}

// How many bytes of text, from its first on, agree with the lead.
size_t agreeing(std::string_view text, Lead lead) {
  const size_t most = std::min(lead.bytes, text.size());
  for (size_t i = 1; i < most; ++i) {
    const uint8_t low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xBF;
    if (byte(text, i) < low || byte(text, i) > high) return i;
  }
  return most;
}

}  // namespace

CodePoint decode(std::string_view text) {
  const Lead lead = lead_of(byte(text, 0));
  if (lead.bytes == 0 || agreeing(text, lead) < lead.bytes) return {kNoCodePoint, 1};
  if (lead.bytes == 1) return {byte(text, 0), 1};
  char32_t value = byte(text, 0) & (0x7F >> lead.bytes);
  for (size_t i = 1; i < lead.bytes; ++i) value = value << 6 | (byte(text, i) & 0x3F);
  return {value, lead.bytes};
}

void append(char32_t code_point, std::string* text) {
  const auto put = [&](char32_t bits) { text->push_back(static_cast<char>(bits)); };
  if (code_point < 0x80) return put(code_point);
  if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      put(0xE0 | code_point >> 12);
    } else {
      put(0xF0 | code_point >> 18);
      put(0x80 | (code_point >> 12 & 0x3F));
    }
    put(0x80 | (code_point >> 6 & 0x3F));
  }
  put(0x80 | (code_point & 0x3F));
}

size_t find_invalid(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint found = decode(text.substr(at));
    if (found.value == kNoCodePoint) break;
    at += found.bytes;
  }
  return at;
}

size_t ill_formed(std::string_view text) {
  return std::max(agreeing(text, lead_of(byte(text, 0))), size_t{1});
}

size_t unfinished(std::string_view text) {
  for (size_t length = 1; length <= 3 && length <= text.size(); ++length) {
    const std::string_view tail = text.substr(text.size() - length);
    if ((byte(tail, 0) & 0xC0) == 0x80) continue;  // not a first byte
    const Lead lead = lead_of(byte(tail, 0));
    return lead.bytes > length && agreeing(tail, lead) == length ? length : 0;
  }
  return 0;
}

std::string shortened(std::string_view text, size_t most_bytes) {
  if (text.size() <= most_bytes) return std::string(text);
  text = text.substr(0, most_bytes);
  text.remove_suffix(unfinished(text));
  return std::string(text) + "...";
}

}  // namespace earnest::engine
