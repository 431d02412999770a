// SPDX-License-Identifier: Apache-2.0
// Keys and values of dialogues, those of the past included: who begins as another one began takes over what
// was computed for it. Room is found by forgetting the cache that was used longest ago; whose dialogue goes
// on is computed again then, with the same bits.
//
// Not safe for threads by itself: all calls are made under the engine's lock, and those that touch keys and
// values (reserve, reuse, settle) by its thread alone, between two steps.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "csrc/engine/kv_cache.h"
#include "csrc/engine/transcript.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// The tokens of a dialogue, and keys and values of the first of them.
struct Prefix {
  Transcript tokens;
  KVCache cache;           // holds at least `computed`
  int64_t computed = 0;    // of the tokens
  int64_t agreed = 0;      // while a step computes: how many tokens stayed as they were when it began
  int64_t indexed = 0;     // blocks that others can find
  uint64_t last_used = 0;  // by the engine's steps
  int in_use = 0;          // answers that run over it, files that are written from it
  bool kept = false;       // has no session any more
  bool untrusted = false;  // came from a file: nobody else is to take it for what it says it is

  int64_t pending() const { return tokens.size() - computed; }
};

class PrefixCache {
 public:
  explicit PrefixCache(std::shared_ptr<KVPool> pool) : pool_(std::move(pool)) {}

  KVPool& pool() const { return *pool_; }

  // All but the first tokens of the dialogue change or go.
  void truncate(Prefix* prefix, int64_t tokens);

  // More was computed: others may find it.
  void publish(Prefix* prefix);

  // A dialogue without a session: kept as long as there is room.
  void keep(const std::shared_ptr<Prefix>& prefix);

  // Before a step: the cache holds what was computed and nothing else.
  Status settle(Prefix* prefix);

  // Takes over the longest beginning that some other dialogue has, if it is longer than what is there; never
  // the last token, whose hidden state is wanted. It is copied, but for a kept one of which no more is to be
  // had, where `all` of this dialogue is there.
  Status reuse(Prefix* prefix, bool all);

  // What was computed elsewhere for the first tokens.
  Status adopt(Prefix* prefix, KVCache cache, int64_t tokens);

  // Room for `least` tokens, better `wanted`; evicts what nobody uses. kContextFull leaves it as it was.
  Status reserve(Prefix* prefix, int64_t least, int64_t wanted);

  // Forgets what was computed.
  void evict(Prefix* prefix);

  // Its session is gone, and it is not kept.
  void remove(Prefix* prefix);

  uint64_t tick() { return ++clock_; }
  bool any_in_use_but(const Prefix* prefix) const;

 private:
  void unpublish(Prefix* prefix, int64_t blocks);
  bool evict_oldest(const Prefix* except);
  Status give_room(int64_t capacity, Prefix* prefix);
  Prefix* find(const Prefix& prefix, int64_t limit, int64_t* matched) const;

  std::shared_ptr<KVPool> pool_;
  std::unordered_map<uint64_t, std::vector<Prefix*>> blocks_;  // by the hash of their last block
  std::unordered_set<Prefix*> holders_;                        // that have room in the pool
  std::unordered_map<Prefix*, std::shared_ptr<Prefix>> kept_;
  uint64_t clock_ = 0;
};

}  // namespace earnest::engine
