// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding of one word: of the pairs of neighbours that a merge is known for, the one of the lowest
// rank (of equals, the leftmost) becomes one token, until no pair is left (Sennrich et al. 2016, over bytes).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "csrc/engine/vocabulary.h"

namespace earnest::engine {

// What two neighbouring tokens become.
class Merges {
 public:
  struct Merge {
    uint32_t rank = kNone;
    int32_t token = kNoToken;
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  void reserve(size_t merges);
  void set(int32_t left, int32_t right, Merge merge);  // of a pair given twice, the last counts
  Merge find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t pair = UINT64_MAX;
    Merge merge;
  };
  size_t slot_of(uint64_t pair) const;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  size_t count_ = 0;
};

// Its calls may run at once on many threads.
class BytePairs {
 public:
  BytePairs() = default;
  // words_first: a word that is a token is that token, whatever the merges say ("ignore_merges").
  BytePairs(Vocabulary vocabulary, Merges merges, bool words_first);

  // Appends the tokens of a word. A byte that has no token has no part in it, as in the reference.
  void encode(std::string_view word, std::vector<int32_t>* ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  bool has_byte(uint8_t byte) const { return of_byte_[byte] != kNoToken; }

 private:
  void merge(std::string_view word, std::vector<int32_t>* ids) const;
  void merge_short(std::vector<int32_t>* ids, size_t from) const;
  void merge_long(std::vector<int32_t>* ids, size_t from) const;

  Vocabulary vocabulary_;
  Merges merges_;
  bool words_first_ = false;
  int32_t of_byte_[256] = {};
  // Whether merging the bytes of a token gives that token: found when it is first met as a word. Most words
  // of a text are such tokens, and then nothing is merged.
  static constexpr uint8_t kUnknown = 0, kYes = 1, kNo = 2;
  std::unique_ptr<std::atomic<uint8_t>[]> whole_;
};

}  // namespace earnest::engine
