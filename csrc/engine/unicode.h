// SPDX-License-Identifier: Apache-2.0
// What a tokenizer has to know about a code point, and normal form C. Classes are those of Unicode 16.0 and
// the normal form that of Unicode 9.0, because that is what the `tokenizers` package has (unicode_tables.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace earnest::engine::unicode {

enum class Class : uint8_t { kOther, kLetter, kNumber, kSpace };  // \p{L}, \p{N}, \s

// Spread out for speed; code points behind the end are kOther.
constexpr char32_t kClassesEnd = 0x32400;
const Class* class_table();

inline Class class_of(const Class* table, char32_t code_point) {
  return code_point < kClassesEnd ? table[code_point] : Class::kOther;
}

// Whether a code point is a number since Unicode 17.0, which the package's step "Digits" knows already.
bool is_newer_number(char32_t code_point);

// Normal form C of valid UTF-8 (Unicode Standard Annex 15).
std::string compose(std::string_view text);

}  // namespace earnest::engine::unicode
