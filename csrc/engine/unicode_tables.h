// SPDX-License-Identifier: Apache-2.0
// The tables that unicode_tables.py writes, as ranges and lists; unicode.cc spreads them out.
#pragma once

#include <span>

namespace earnest::engine::unicode {

struct Range {
  char32_t first, last;  // both included
};
struct ClassRange {
  char32_t first, last, combining_class;
};
struct Pair {
  char32_t composite, first, second;
};

struct Classes {
  std::span<const Range> letters, numbers, spaces;
  std::span<const Range> newer_numbers;  // which Digits cuts out as well
};
Classes classes();

struct NormalForm {
  std::span<const ClassRange> combining_classes;
  std::span<const Pair> composites, broken_pairs;
  std::span<const Range> single_runs;
  std::span<const char32_t> singles;
};
NormalForm normal_form();

}  // namespace earnest::engine::unicode
