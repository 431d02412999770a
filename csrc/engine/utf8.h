// SPDX-License-Identifier: Apache-2.0
// UTF-8, strictly: no overlong forms, no surrogates, nothing above U+10FFFF (Unicode 15, table 3-7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace earnest::engine {

constexpr char32_t kNoCodePoint = 0xFFFFFFFF;

struct CodePoint {
  char32_t value = kNoCodePoint;  // kNoCodePoint: these bytes do not begin one
  size_t bytes = 0;               // how many it takes; of what is wrong, 1
};

// The code point that `text` begins with; text is not empty.
CodePoint decode(std::string_view text);

// Appends a code point that is not a surrogate and at most U+10FFFF.
void append(char32_t code_point, std::string* text);

// Where the first byte stands that no code point explains; text.size() where there is none.
size_t find_invalid(std::string_view text);

// Of bytes that begin no code point: how many of them are read as one mistake, which is what agrees with the
// beginning of a code point, at least 1 ("maximal subpart", section 3.9). A decoder writes one U+FFFD for
// them.
size_t ill_formed(std::string_view text);

// How many bytes at the end may be the beginning of a code point that is not all there yet: 0 to 3.
size_t unfinished(std::string_view text);

// At most the first `most_bytes` of text, cut between code points, and dots where something was cut off.
std::string shortened(std::string_view text, size_t most_bytes);

}  // namespace earnest::engine
