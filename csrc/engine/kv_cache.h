// SPDX-License-Identifier: Apache-2.0
// Keys and values of the tokens that sequences have seen. One pool holds [tokens, kv_heads, dim] twice per
// layer; a cache is a run of consecutive tokens in it, so that attention reads many sequences of one pool in
// one call, and nothing is moved when one of them ends. A pool may lie on a GPU: then its addresses are
// there, and the host reads and writes runs of it by calls.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "csrc/engine/config.h"
#include "csrc/engine/device_memory.h"
#include "csrc/engine/place.h"
#include "csrc/engine/weights.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class KVCache;

class KVPool : public std::enable_shared_from_this<KVPool> {
 public:
  static constexpr int64_t kMostTokens = INT32_MAX;

  static Status create(const TextConfig& config, Precision precision, int64_t tokens,
                       std::shared_ptr<KVPool>* pool, const Place& place = {});

  // The same over memory that somebody else keeps: keys and values of each layer, [tokens, kv_heads, dim].
  static Status over(const TextConfig& config, Precision precision, int64_t tokens,
                     const std::vector<void*>& keys, const std::vector<void*>& values,
                     std::shared_ptr<KVPool>* pool, const Place& place = {});

  // The run of tokens from `start` on, of which the first `length` are already there.
  Status adopt(int64_t start, int64_t capacity, int64_t length, KVCache* cache);

  // Room for `capacity` tokens of a new sequence; kContextFull where there is none in one run. From any
  // thread.
  Status allocate(int64_t capacity, KVCache* cache);

  // Room for `capacity` tokens in a cache of this pool, which keeps what it holds: in place where the tokens
  // behind it are free, else it moves. kContextFull leaves it as it was.
  Status grow(int64_t capacity, KVCache* cache);

  int64_t tokens() const { return tokens_; }
  int64_t free_tokens() const;
  size_t bytes() const { return 2 * static_cast<size_t>(layers_ * tokens_) * token_bytes_; }

  // The key or value of token `token` of the pool, [kv_heads, dim].
  char* keys(int64_t layer, int64_t token) const { return at(keys_, layer, token); }
  char* values(int64_t layer, int64_t token) const { return at(values_, layer, token); }
  size_t token_bytes() const { return token_bytes_; }
  int64_t layers() const { return layers_; }
  const Place& place() const { return place_; }
  Device device() const { return place_.device; }

  // Keys and values of tokens [token, token + count), layer by layer, in pieces of memory of the host:
  // each(char* memory, size_t bytes). They are read (written: each fills the memory).
  template <typename Each>
  Status read(int64_t token, int64_t count, const Each& each) const {
    return visit(token, count, each, true);
  }
  template <typename Each>
  Status write(int64_t token, int64_t count, const Each& each) {
    return visit(token, count, each, false);
  }

 private:
  friend class KVCache;
  enum class Owner { kCpu, kCuda, kOther };
  struct Free {
    Owner owner = Owner::kCpu;
    void operator()(void* memory) const {
      if (owner == Owner::kCpu) std::free(memory);
      if (owner == Owner::kCuda) Release()(memory);
    }
  };
  using Slab = std::unique_ptr<void, Free>;

  KVPool() = default;
  static Status made_for(const TextConfig& config, Precision precision, int64_t tokens,
                         std::shared_ptr<KVPool>* pool);
  char* at(const std::vector<Slab>& slabs, int64_t layer, int64_t token) const {
    return static_cast<char*>(slabs[static_cast<size_t>(layer)].get()) +
           static_cast<size_t>(token) * token_bytes_;
  }
  // Runs of free tokens: start -> how many. A cache holds the node of its own run, so that giving it back
  // needs no memory.
  using Runs = std::map<int64_t, int64_t>;
  void release(Runs::node_type run);
  Status take_slab(std::vector<Slab>* slabs) const;
  template <typename Each>
  Status visit(int64_t token, int64_t count, const Each& each, bool reading) const;
  Status move_down(int64_t from, int64_t to, int64_t count) const;
  bool extend(int64_t capacity, KVCache* cache);
  Status slide(int64_t capacity, KVCache* cache, bool* fits);

  int64_t tokens_ = 0, layers_ = 0;
  size_t token_bytes_ = 0;
  Place place_;
  std::vector<Slab> keys_, values_;
  mutable std::mutex mutex_;
  Runs free_;  // neighbours are joined
};

template <typename Each>
Status KVPool::visit(int64_t token, int64_t count, const Each& each, bool reading) const {
  const size_t bytes = static_cast<size_t>(count) * token_bytes_;
  const CurrentPlace current(place_);
  if (!current.status().ok()) return current.status();
  std::vector<char> sent(device() == Device::kCpu ? 0 : bytes);
  for (int64_t layer = 0; layer < layers_ && bytes > 0; ++layer) {
    for (char* memory : {keys(layer, token), values(layer, token)}) {
      if (device() == Device::kCpu) {
        each(memory, bytes);
        continue;
      }
      if (reading) {
        if (Status status = engine::copy("kv_cache", device(), sent.data(), memory, bytes); !status.ok())
          return status;
      }
      each(sent.data(), bytes);
      if (!reading) {
        if (Status status = engine::copy("kv_cache", device(), memory, sent.data(), bytes); !status.ok())
          return status;
      }
    }
  }
  return {};
}

// The cache of one sequence. Gives its room back when it goes; the pool lives as long.
class KVCache {
 public:
  KVCache() = default;
  ~KVCache() { clear(); }
  KVCache(KVCache&& other) noexcept { swap(other); }
  KVCache& operator=(KVCache&& other) noexcept {
    swap(other);
    return *this;
  }

  const std::shared_ptr<KVPool>& pool() const { return pool_; }
  int64_t start() const { return start_; }        // its first token in the pool
  int64_t capacity() const { return capacity_; }  // tokens it has room for
  int64_t length() const { return length_; }      // tokens it holds

  // Forgets all but the first tokens.
  Status truncate(int64_t length);

  // Holds so many tokens, which somebody has written where they belong.
  Status extend(int64_t length);

  // Becomes the first `length` tokens of another, of the same pool or one like it.
  Status copy(const KVCache& other, int64_t length);

  void clear();

 private:
  friend class KVPool;
  friend class Decoder;
  void swap(KVCache& other) noexcept;

  std::shared_ptr<KVPool> pool_;
  KVPool::Runs::node_type run_;
  int64_t start_ = 0, capacity_ = 0, length_ = 0;
};

}  // namespace earnest::engine
