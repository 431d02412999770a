// SPDX-License-Identifier: Apache-2.0
// Scratch memory of one forward pass after another: taken piece by piece, given back all at once, and kept,
// so that a step of decoding asks the system for none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "csrc/engine/page_vector.h"

namespace earnest::engine {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Uninitialised, on a 64-byte boundary, until reset(); throws std::bad_alloc.
  template <typename T>
  T* take(int64_t count) {
    if (count < 0 || static_cast<uint64_t>(count) > SIZE_MAX / 4 / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  // Everything taken is free again. What lay in several blocks will fit into one.
  void reset() {
    if (blocks_.size() > 1) {
      const size_t total = held();
      blocks_.clear();
      blocks_.push_back(Block(total));
    }
    current_ = used_ = 0;
  }

  // What is taken while a scope stands is free again when it ends.
  class Scope {
   public:
    explicit Scope(Arena* arena) : arena_(arena), block_(arena->current_), used_(arena->used_) {}
    ~Scope() {
      arena_->current_ = block_;
      arena_->used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena* arena_;
    size_t block_, used_;
  };

  size_t held() const {
    size_t total = 0;
    for (const Block& block : blocks_) total += block.bytes;
    return total;
  }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kLeast = size_t{1} << 20;

  // Pages of their own: blocks that the first passes outgrow are large.
  struct Free {
    size_t bytes;
    void operator()(char* memory) const { PageAllocator<char>().deallocate(memory, bytes); }
  };
  struct Block {
    explicit Block(size_t size) : memory(PageAllocator<char>().allocate(size), Free{size}), bytes(size) {}
    std::unique_ptr<char, Free> memory;
    size_t bytes;
  };

  void* take_bytes(size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    while (current_ < blocks_.size() && blocks_[current_].bytes - used_ < bytes) {
      ++current_;
      used_ = 0;
    }
    if (current_ == blocks_.size()) blocks_.push_back(Block(std::max({bytes, held(), kLeast})));
    void* memory = blocks_[current_].memory.get() + used_;
    used_ += bytes;
    return memory;
  }

  std::vector<Block> blocks_;
  size_t current_ = 0;  // the block that is taken from; may be one past the last
  size_t used_ = 0;     // of it
};

}  // namespace earnest::engine
