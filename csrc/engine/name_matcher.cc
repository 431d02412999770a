// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/name_matcher.h"

namespace earnest::engine {
namespace {

uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

}  // namespace

void NameMatcher::add(std::string_view name, int32_t id) {
  uint32_t node = 0;
  for (const char byte : name) {
    const auto [next, fresh] = edges_.try_emplace(edge(node, byte), static_cast<uint32_t>(ids_.size()));
    if (fresh) ids_.push_back(-1);
    node = next->second;
  }
  ids_[node] = id;
  if (!name.empty()) begins_[static_cast<uint8_t>(name[0])] = true;
}

NameMatcher::Match NameMatcher::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<uint8_t>(text[begin])]) continue;
    Match longest;
    uint32_t node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto next = edges_.find(edge(node, text[at]));
      if (next == edges_.end()) break;
      node = next->second;
      if (ids_[node] >= 0) longest = {begin, at + 1, ids_[node]};
    }
    if (longest.id >= 0) return longest;
  }
  return {text.size(), text.size(), -1};
}

}  // namespace earnest::engine
