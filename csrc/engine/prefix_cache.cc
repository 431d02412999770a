// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/prefix_cache.h"

#include <algorithm>

#include "csrc/engine/guard.h"

namespace earnest::engine {

void PrefixCache::truncate(Prefix* prefix, int64_t tokens) {
  prefix->computed = std::min(prefix->computed, tokens);
  prefix->agreed = std::min(prefix->agreed, tokens);
  unpublish(prefix, prefix->computed / Transcript::kBlock);
  prefix->tokens.truncate(tokens);
}

void PrefixCache::publish(Prefix* prefix) {
  if (prefix->untrusted) return;
  for (; prefix->indexed < prefix->computed / Transcript::kBlock; ++prefix->indexed) {
    blocks_[prefix->tokens.hash(prefix->indexed)].push_back(prefix);
  }
}

// Leaves the first blocks to be found.
void PrefixCache::unpublish(Prefix* prefix, int64_t blocks) {
  for (; prefix->indexed > blocks; --prefix->indexed) {
    const auto found = blocks_.find(prefix->tokens.hash(prefix->indexed - 1));
    std::erase(found->second, prefix);
    if (found->second.empty()) blocks_.erase(found);
  }
}

void PrefixCache::keep(const std::shared_ptr<Prefix>& prefix) {
  if (prefix->untrusted || prefix->computed < Transcript::kBlock) {
    remove(prefix.get());
    return;
  }
  prefix->kept = true;
  kept_[prefix.get()] = prefix;
}

void PrefixCache::remove(Prefix* prefix) {
  evict(prefix);
  kept_.erase(prefix);
}

void PrefixCache::evict(Prefix* prefix) {
  unpublish(prefix, 0);
  prefix->computed = 0;
  prefix->cache.clear();
  holders_.erase(prefix);
}

Status PrefixCache::settle(Prefix* prefix) {
  prefix->last_used = tick();
  if (prefix->cache.length() == prefix->computed) return {};
  return prefix->cache.truncate(prefix->computed);
}

Prefix* PrefixCache::find(const Prefix& prefix, int64_t limit, int64_t* matched) const {
  const std::vector<Prefix*>* candidates = nullptr;
  // Who has a block has all before it, so that the longest is found by going up.
  for (int64_t block = prefix.computed / Transcript::kBlock; (block + 1) * Transcript::kBlock <= limit;
       ++block) {
    const auto found = blocks_.find(prefix.tokens.hash(block));
    if (found == blocks_.end()) break;
    candidates = &found->second;
  }
  Prefix* best = nullptr;
  *matched = prefix.computed;
  if (candidates == nullptr) return best;
  constexpr size_t kMostCompared = 8;  // a thousand dialogues that begin alike need not all be looked at
  for (size_t i = 0; i < std::min(candidates->size(), kMostCompared); ++i) {
    Prefix* one = (*candidates)[i];
    const int64_t same = prefix.tokens.common(one->tokens, std::min(limit, one->computed));
    if (one == &prefix || same <= *matched) continue;
    best = one;
    *matched = same;
  }
  return best;
}

Status PrefixCache::reuse(Prefix* prefix, bool all) {
  int64_t matched = 0;
  const int64_t limit = prefix->tokens.size() - 1;
  if (prefix->untrusted && prefix->computed > 0) return {};
  Prefix* source = find(*prefix, limit, &matched);
  if (source == nullptr) return {};
  constexpr int64_t kLost = 4 * Transcript::kBlock;  // of a kept dialogue, that may go when it is taken over
  if (all && source->kept && source->in_use == 0 && source->computed - matched <= kLost) {
    std::swap(prefix->cache, source->cache);
    if (prefix->cache.capacity() > 0) holders_.insert(prefix);
    remove(source);
  } else {
    ++source->in_use;
    const Status status = reserve(prefix, matched, prefix->tokens.size());
    --source->in_use;
    EARNEST_RETURN_IF_ERROR(status);
    EARNEST_RETURN_IF_ERROR(prefix->cache.copy(source->cache, matched));
    source->last_used = tick();
  }
  prefix->computed = matched;
  EARNEST_RETURN_IF_ERROR(settle(prefix));
  publish(prefix);
  return {};
}

Status PrefixCache::adopt(Prefix* prefix, KVCache cache, int64_t tokens) {
  EARNEST_RETURN_IF_ERROR(cache.extend(tokens));
  prefix->cache = std::move(cache);
  prefix->computed = tokens;
  prefix->last_used = tick();
  holders_.insert(prefix);
  return {};
}

Status PrefixCache::give_room(int64_t capacity, Prefix* prefix) {
  if (capacity <= prefix->cache.capacity()) return {};
  const Status status = prefix->cache.capacity() > 0 ? pool_->grow(capacity, &prefix->cache)
                                                     : pool_->allocate(capacity, &prefix->cache);
  if (status.ok()) holders_.insert(prefix);
  return status;
}

Status PrefixCache::reserve(Prefix* prefix, int64_t least, int64_t wanted) {
  if (least <= prefix->cache.capacity()) return {};
  Status status;
  do {
    for (const int64_t capacity : {std::max(least, wanted), least}) {
      status = give_room(capacity, prefix);
      if (status.ok() || status.code() != StatusCode::kContextFull) return status;
    }
  } while (evict_oldest(prefix));
  return status;
}

bool PrefixCache::evict_oldest(const Prefix* except) {
  Prefix* oldest = nullptr;
  for (Prefix* one : holders_) {
    if (one == except || one->in_use > 0) continue;
    if (oldest == nullptr || one->last_used < oldest->last_used) oldest = one;
  }
  if (oldest == nullptr) return false;
  remove(oldest);
  return true;
}

bool PrefixCache::any_in_use_but(const Prefix* prefix) const {
  return std::any_of(holders_.begin(), holders_.end(),
                     [&](const Prefix* one) { return one != prefix && one->in_use > 0; });
}

}  // namespace earnest::engine
