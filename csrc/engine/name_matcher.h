// SPDX-License-Identifier: Apache-2.0
// Finding the names of special tokens in a text, where that was asked for: from left to right, the longest
// name that begins at a place.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace earnest::engine {

class NameMatcher {
 public:
  static constexpr size_t kLongestName = 4096;  // a name is looked for from every place of a text

  void add(std::string_view name, int32_t id);

  struct Match {
    size_t begin = 0, end = 0;  // in bytes
    int32_t id = -1;            // -1: no name from here on
  };
  Match find(std::string_view text, size_t from) const;

 private:
  // A trie; the edges of all its nodes in one table, by node and byte.
  std::vector<int32_t> ids_{-1};  // of each node: the token whose name ends there
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::array<bool, 256> begins_{};  // the first bytes of all names
};

}  // namespace earnest::engine
