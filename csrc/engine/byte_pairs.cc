// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/byte_pairs.h"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>

namespace earnest::engine {
namespace {

constexpr size_t kShort = 40;  // tokens; above it a queue is faster than looking through all pairs

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void Merges::reserve(size_t merges) {
  size_t size = 16;
  while (size < 2 * merges) size *= 2;
  if (size <= slots_.size()) return;
  std::vector<Slot> old(size);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.merge.token != kNoToken) slots_[slot_of(slot.pair)] = slot;
  }
}

size_t Merges::slot_of(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t mixed = (pair ^ pair >> 29) * 0x9E3779B97F4A7C15;
  size_t slot = (mixed ^ mixed >> 32) & mask;
  while (slots_[slot].pair != pair && slots_[slot].merge.token != kNoToken) slot = (slot + 1) & mask;
  return slot;
}

void Merges::set(int32_t left, int32_t right, Merge merge) {
  reserve(count_ + 1);
  Slot& slot = slots_[slot_of(pair_of(left, right))];
  if (slot.merge.token == kNoToken) ++count_;
  slot = {pair_of(left, right), merge};
}

Merges::Merge Merges::find(int32_t left, int32_t right) const {
  return slots_.empty() ? Merge{} : slots_[slot_of(pair_of(left, right))].merge;
}

BytePairs::BytePairs(Vocabulary vocabulary, Merges merges, bool words_first)
    : vocabulary_(std::move(vocabulary)),
      merges_(std::move(merges)),
      words_first_(words_first),
      whole_(new std::atomic<uint8_t>[vocabulary_.end()]()) {
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    of_byte_[byte] = vocabulary_.find({&c, 1});
  }
}

void BytePairs::encode(std::string_view word, std::vector<int32_t>* ids) const {
  const int32_t token = vocabulary_.find(word);
  if (token == kNoToken) return merge(word, ids);
  std::atomic<uint8_t>& whole = whole_[token];
  const uint8_t known = words_first_ ? kYes : whole.load(std::memory_order_relaxed);
  if (known == kYes) return ids->push_back(token);
  const size_t from = ids->size();
  merge(word, ids);
  if (known == kUnknown) {
    const bool alone = ids->size() == from + 1 && ids->back() == token;
    whole.store(alone ? kYes : kNo, std::memory_order_relaxed);
  }
}

void BytePairs::merge(std::string_view word, std::vector<int32_t>* ids) const {
  const size_t from = ids->size();
  for (const char c : word) {
    const int32_t token = of_byte_[static_cast<uint8_t>(c)];
    if (token != kNoToken) ids->push_back(token);
  }
  ids->size() - from <= kShort ? merge_short(ids, from) : merge_long(ids, from);
}

// Looks through all pairs for the best one, again and again.
void BytePairs::merge_short(std::vector<int32_t>* ids, size_t from) const {
  int32_t* tokens = ids->data() + from;
  size_t count = ids->size() - from;
  std::array<Merges::Merge, kShort> pairs;  // pairs[i]: of the tokens i and i + 1
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = merges_.find(tokens[i], tokens[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == Merges::kNone) break;
    tokens[best] = pairs[best].token;
    std::copy(tokens + best + 2, tokens + count, tokens + best + 1);
    if (best + 2 < count) std::copy(&pairs[best + 2], &pairs[count - 1], &pairs[best + 1]);
    --count;
    if (best > 0) pairs[best - 1] = merges_.find(tokens[best - 1], tokens[best]);
    if (best + 1 < count) pairs[best] = merges_.find(tokens[best], tokens[best + 1]);
  }
  ids->resize(from + count);
}

// A list of tokens, each with its neighbours, and a queue of pairs by rank and place; n log n for any word.
void BytePairs::merge_long(std::vector<int32_t>* ids, size_t from) const {
  struct Node {
    int32_t token;
    uint32_t previous, next;
    Merges::Merge pair;  // with the next; what the queue holds of another rank is out of date
  };
  const auto count = static_cast<uint32_t>(ids->size() - from);
  std::vector<Node> nodes(count);
  std::vector<uint64_t> first;  // rank, then place
  const auto pair_at = [&](uint32_t i) {
    Node& node = nodes[i];
    node.pair = node.next < count ? merges_.find(node.token, nodes[node.next].token) : Merges::Merge{};
    return uint64_t{node.pair.rank} << 32 | i;
  };
  for (uint32_t i = 0; i < count; ++i) nodes[i] = {(*ids)[from + i], i - 1, i + 1, {}};
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t entry = pair_at(i);
    if (nodes[i].pair.rank != Merges::kNone) first.push_back(entry);
  }
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue({}, std::move(first));
  const auto look_again = [&](uint32_t i) {
    const uint64_t entry = pair_at(i);
    if (nodes[i].pair.rank != Merges::kNone) queue.push(entry);
  };
  while (!queue.empty()) {
    const auto rank = static_cast<uint32_t>(queue.top() >> 32), i = static_cast<uint32_t>(queue.top());
    queue.pop();
    Node& node = nodes[i];
    if (node.pair.rank != rank) continue;
    nodes[node.next].pair = {};
    node.token = node.pair.token;
    node.next = nodes[node.next].next;
    if (node.next < count) nodes[node.next].previous = i;
    look_again(i);
    if (node.previous < count) look_again(node.previous);
  }
  size_t end = from;
  for (uint32_t i = 0; i < count; i = nodes[i].next) (*ids)[end++] = nodes[i].token;
  ids->resize(end);
}

}  // namespace earnest::engine
