// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "csrc/engine/guard.h"

namespace earnest::engine {

Status KVPool::made_for(const TextConfig& config, Precision precision, int64_t tokens,
                        std::shared_ptr<KVPool>* pool) {
  if (tokens < 1 || tokens > kMostTokens) {
    return invalid_argument("kv_cache", "tokens", "1 to " + std::to_string(kMostTokens),
                            std::to_string(tokens));
  }
  pool->reset(new KVPool);
  (*pool)->tokens_ = tokens;
  (*pool)->layers_ = config.num_hidden_layers;
  (*pool)->token_bytes_ =
      static_cast<size_t>(config.num_key_value_heads * config.head_dim()) * size_of(precision);
  (*pool)->free_[0] = tokens;
  return {};
}

Status KVPool::create(const TextConfig& config, Precision precision, int64_t tokens,
                      std::shared_ptr<KVPool>* pool, const Place& place) {
  return guarded("kv_cache", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_place(place));
    std::shared_ptr<KVPool> made;
    EARNEST_RETURN_IF_ERROR(made_for(config, precision, tokens, &made));
    made->place_ = place;
    const CurrentPlace current(place);
    EARNEST_RETURN_IF_ERROR(current.status());
    for (auto* slabs : {&made->keys_, &made->values_}) {
      for (int64_t layer = 0; layer < made->layers_; ++layer) EARNEST_RETURN_IF_ERROR(made->take_slab(slabs));
    }
    *pool = std::move(made);
    return {};
  });
}

Status KVPool::take_slab(std::vector<Slab>* slabs) const {
  const auto tokens = static_cast<size_t>(tokens_);
  if (device() == Device::kCpu) {
    // Pages of calloc are the system's until they are written to.
    slabs->push_back(Slab(std::calloc(tokens, token_bytes_), Free{Owner::kCpu}));
    return slabs->back() == nullptr ? out_of_memory("kv_cache") : Status();
  }
  DeviceMemory memory;
  EARNEST_RETURN_IF_ERROR(engine::allocate("kv_cache", tokens * token_bytes_, &memory));
  slabs->push_back(Slab(memory.release(), Free{Owner::kCuda}));
  return {};
}

Status KVPool::over(const TextConfig& config, Precision precision, int64_t tokens,
                    const std::vector<void*>& keys, const std::vector<void*>& values,
                    std::shared_ptr<KVPool>* pool, const Place& place) {
  return guarded("kv_cache", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_place(place));
    std::shared_ptr<KVPool> made;
    EARNEST_RETURN_IF_ERROR(made_for(config, precision, tokens, &made));
    made->place_ = place;
    const auto layers = static_cast<size_t>(made->layers_);
    if (keys.size() != layers || values.size() != layers) {
      return invalid_argument("kv_cache", "keys and values", "those of " + std::to_string(layers) + " layers",
                              std::to_string(keys.size()) + " and " + std::to_string(values.size()));
    }
    for (void* memory : keys) made->keys_.push_back(Slab(memory, Free{Owner::kOther}));
    for (void* memory : values) made->values_.push_back(Slab(memory, Free{Owner::kOther}));
    *pool = std::move(made);
    return {};
  });
}

Status KVPool::adopt(int64_t start, int64_t capacity, int64_t length, KVCache* cache) {
  const bool inside = start >= 0 && capacity >= 1 && start <= tokens_ - capacity;
  if (!inside || length < 0 || length > capacity) {
    return invalid_argument(
        "kv_cache", "run", "one inside the pool, no longer than its room",
        std::to_string(length) + " of " + std::to_string(capacity) + " tokens from " + std::to_string(start));
  }
  cache->clear();
  return guarded("kv_cache", [&]() -> Status {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto run = free_.upper_bound(start);
    if (run == free_.begin() || (--run)->first + run->second < start + capacity) {
      return invalid_argument("kv_cache", "run", "one that nobody has", "one that overlaps another");
    }
    Runs taken = {{start, capacity}};
    const int64_t before = start - run->first, after = run->second - before - capacity;
    if (after > 0) free_.emplace(start + capacity, after);
    if (before > 0) {
      run->second = before;
    } else {
      free_.erase(run);
    }
    cache->run_ = taken.extract(taken.begin());
    cache->pool_ = shared_from_this();
    cache->start_ = start;
    cache->capacity_ = capacity;
    cache->length_ = length;
    return {};
  });
}

Status KVPool::allocate(int64_t capacity, KVCache* cache) {
  if (capacity < 1) return invalid_argument("kv_cache", "capacity", "at least 1", std::to_string(capacity));
  cache->clear();
  return guarded("kv_cache", [&]() -> Status {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto run = free_.begin(); run != free_.end(); ++run) {
      const auto [start, tokens] = *run;
      if (tokens < capacity) continue;
      Runs taken = {{start, capacity}};
      auto rest = free_.extract(run);
      if (tokens > capacity) {
        rest.key() = start + capacity;
        rest.mapped() = tokens - capacity;
        free_.insert(std::move(rest));
      }
      cache->run_ = taken.extract(taken.begin());
      cache->pool_ = shared_from_this();
      cache->start_ = start;
      cache->capacity_ = capacity;
      return {};
    }
    return {StatusCode::kContextFull,
            "[kv_cache] pool: expected room for " + std::to_string(capacity) + " tokens, got less"};
  });
}

Status KVPool::grow(int64_t capacity, KVCache* cache) {
  if (cache->pool_.get() != this || capacity < cache->capacity_) {
    return invalid_argument("kv_cache", "capacity", "at least that of a cache of this pool",
                            std::to_string(capacity));
  }
  if (extend(capacity, cache)) return {};
  KVCache larger;
  Status status = allocate(capacity, &larger);
  if (!status.ok()) {
    bool fits = false;
    EARNEST_RETURN_IF_ERROR(slide(capacity, cache, &fits));
    return fits ? Status() : status;
  }
  EARNEST_RETURN_IF_ERROR(larger.copy(*cache, cache->length_));
  cache->swap(larger);
  return {};
}

// Takes what is missing from the free tokens right behind.
bool KVPool::extend(int64_t capacity, KVCache* cache) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t more = capacity - cache->capacity_;
  if (more == 0) return true;
  const auto next = free_.find(cache->start_ + cache->capacity_);
  if (next == free_.end() || next->second < more) return false;
  auto rest = free_.extract(next);
  if (rest.mapped() > more) {
    rest.key() += more;
    rest.mapped() -= more;
    free_.insert(std::move(rest));
  }
  cache->run_.mapped() = cache->capacity_ = capacity;
  return true;
}

// Tokens [from, from + count) to [to, to + count), to < from, which may overlap: a GPU's copies must not, and
// go by way of other memory. Where there is none, nothing has moved.
Status KVPool::move_down(int64_t from, int64_t to, int64_t count) const {
  const size_t bytes = static_cast<size_t>(count) * token_bytes_;
  const CurrentPlace current(place_);
  EARNEST_RETURN_IF_ERROR(current.status());
  DeviceMemory between;
  if (device() == Device::kCuda && from - to < count)
    EARNEST_RETURN_IF_ERROR(engine::allocate("kv_cache", bytes, &between));
  for (int64_t layer = 0; layer < layers_; ++layer) {
    for (const auto* slabs : {&keys_, &values_}) {
      char *target = at(*slabs, layer, to), *source = at(*slabs, layer, from);
      if (device() == Device::kCpu) {
        std::memmove(target, source, bytes);
        continue;
      }
      if (between != nullptr) {
        EARNEST_RETURN_IF_ERROR(engine::copy("kv_cache", device(), between.get(), source, bytes));
        source = static_cast<char*>(between.get());
      }
      EARNEST_RETURN_IF_ERROR(engine::copy("kv_cache", device(), target, source, bytes));
    }
  }
  return {};
}

// Moves a cache down into the free tokens right before it, where those on both sides together are enough.
Status KVPool::slide(int64_t capacity, KVCache* cache, bool* fits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto next = free_.lower_bound(cache->start_);
  if (next == free_.begin()) return {};
  const auto before = std::prev(next);
  const auto [start, room] = *before;
  if (start + room != cache->start_) return {};
  const bool joined = next != free_.end() && next->first == cache->start_ + cache->capacity_;
  const int64_t total = room + cache->capacity_ + (joined ? next->second : 0);
  if (total < capacity) return {};
  EARNEST_RETURN_IF_ERROR(move_down(cache->start_, start, cache->length_));
  if (joined) free_.erase(next);
  auto rest = free_.extract(before);
  if (total > capacity) {
    rest.key() = start + capacity;
    rest.mapped() = total - capacity;
    free_.insert(std::move(rest));
  }
  cache->run_.key() = cache->start_ = start;
  cache->run_.mapped() = cache->capacity_ = capacity;
  *fits = true;
  return {};
}

int64_t KVPool::free_tokens() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t total = 0;
  for (const auto& [start, tokens] : free_) total += tokens;
  return total;
}

void KVPool::release(Runs::node_type run) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto after = free_.lower_bound(run.key());
  if (after != free_.end() && after->first == run.key() + run.mapped()) {
    run.mapped() += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == run.key()) {
      before->second += run.mapped();
      return;
    }
  }
  free_.insert(std::move(run));
}

Status KVCache::truncate(int64_t length) {
  if (length < 0 || length > length_) {
    return invalid_argument("kv_cache", "length", "0 to " + std::to_string(length_), std::to_string(length));
  }
  length_ = length;
  return {};
}

Status KVCache::extend(int64_t length) {
  if (length < length_ || length > capacity_) {
    return invalid_argument("kv_cache", "length",
                            std::to_string(length_) + " to " + std::to_string(capacity_),
                            std::to_string(length));
  }
  length_ = length;
  return {};
}

Status KVCache::copy(const KVCache& other, int64_t length) {
  const int64_t most = std::min(other.length_, capacity_);
  if (length < 0 || length > most) {
    return invalid_argument("kv_cache", "length", "0 to " + std::to_string(most), std::to_string(length));
  }
  if (length > 0 &&
      (pool_->layers_ != other.pool_->layers_ || pool_->token_bytes_ != other.pool_->token_bytes_)) {
    return invalid_argument("kv_cache", "other", "a cache of the same model", "one of another");
  }
  if (length > 0 && pool_->place_ != other.pool_->place_)
    return invalid_argument("kv_cache", "other", "a cache on the same device", "one on another");
  const CurrentPlace current(length == 0 ? Place() : pool_->place_);
  EARNEST_RETURN_IF_ERROR(current.status());
  const size_t bytes = length == 0 ? 0 : static_cast<size_t>(length) * pool_->token_bytes_;
  for (int64_t layer = 0; bytes > 0 && layer < pool_->layers_; ++layer) {
    for (const auto& [to, from] :
         {std::pair(pool_->keys(layer, start_), other.pool_->keys(layer, other.start_)),
          std::pair(pool_->values(layer, start_), other.pool_->values(layer, other.start_))}) {
      if (to != from) EARNEST_RETURN_IF_ERROR(engine::copy("kv_cache", pool_->device(), to, from, bytes));
    }
  }
  length_ = length;
  return {};
}

void KVCache::clear() {
  if (pool_ != nullptr) pool_->release(std::move(run_));
  pool_.reset();
  start_ = capacity_ = length_ = 0;
}

void KVCache::swap(KVCache& other) noexcept {
  std::swap(pool_, other.pool_);
  run_.swap(other.run_);
  std::swap(start_, other.start_);
  std::swap(capacity_, other.capacity_);
  std::swap(length_, other.length_);
}

}  // namespace earnest::engine
