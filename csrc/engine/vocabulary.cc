// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/vocabulary.h"

#include <algorithm>
#include <cstring>

namespace earnest::engine {
namespace {

// Eight bytes at a time, mixed by a multiplication whose high half is folded in. Words are short.
uint64_t hash_of(std::string_view bytes) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio
  uint64_t hash = bytes.size() * kOdd;
  while (!bytes.empty()) {
    uint64_t word = 0;
    const size_t taken = std::min(bytes.size(), sizeof word);
    std::memcpy(&word, bytes.data(), taken);
    hash = (hash ^ word) * kOdd;
    hash ^= hash >> 32;
    bytes.remove_prefix(taken);
  }
  return hash * kOdd >> 20;
}

}  // namespace

void Vocabulary::reserve(size_t tokens) {
  size_t slots = 16;
  while (slots < 2 * tokens) slots *= 2;
  if (slots > slots_.size()) grow(slots);
}

void Vocabulary::grow(size_t slots) {
  std::vector<int32_t> old(slots, kNoToken);
  old.swap(slots_);
  for (const int32_t id : old) {
    if (id != kNoToken) slots_[slot_of(bytes(id))] = id;
  }
}

// Where these bytes stand, or the empty place where they would.
size_t Vocabulary::slot_of(std::string_view wanted) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash_of(wanted) & mask;
  while (slots_[slot] != kNoToken && bytes(slots_[slot]) != wanted) slot = (slot + 1) & mask;
  return slot;
}

void Vocabulary::put(int32_t id, std::string_view bytes) {
  if (id >= end()) spans_.resize(static_cast<size_t>(id) + 1);
  spans_[id] = {static_cast<uint32_t>(all_.size()), static_cast<uint32_t>(bytes.size())};
  all_.append(bytes);
}

Vocabulary::Added Vocabulary::add(int32_t id, std::string_view bytes) {
  reserve(count_ + 1);
  if (has(id)) return Added::kIdTaken;
  const size_t slot = slot_of(bytes);
  if (slots_[slot] != kNoToken) return Added::kBytesTaken;
  put(id, bytes);
  slots_[slot] = id;
  ++count_;
  longest_ = std::max(longest_, bytes.size());
  return Added::kYes;
}

Vocabulary::Added Vocabulary::add_unreachable(int32_t id, std::string_view bytes) {
  if (has(id)) return Added::kIdTaken;
  put(id, bytes);
  return Added::kYes;
}

int32_t Vocabulary::find(std::string_view bytes) const {
  return bytes.size() > longest_ || slots_.empty() ? kNoToken : slots_[slot_of(bytes)];
}

bool Vocabulary::has(int32_t id) const { return id >= 0 && id < end() && spans_[id].length != kAbsent; }

std::string_view Vocabulary::bytes(int32_t id) const {
  if (!has(id)) return {};
  return std::string_view(all_.data() + spans_[id].begin, spans_[id].length);
}

}  // namespace earnest::engine
