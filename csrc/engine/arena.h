// SPDX-License-Identifier: Apache-2.0
// Scratch memory of one forward pass after another: taken piece by piece, given back all at once, and kept,
// so that a step of decoding asks the system for none. An arena of the host has one on the GPU beside it,
// once a pass asks for it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "csrc/engine/device_memory.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/page_vector.h"
#include "csrc/engine/place.h"

namespace earnest::engine {

class Arena {
 public:
  explicit Arena(Device device = Device::kCpu) : device_(device) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Device device() const { return device_; }

  // Of a GPU: where passes put their work, null: the default stream.
  void* stream() const { return stream_; }
  void set_stream(void* stream) { stream_ = stream; }

  // This one, or the one beside it where that lies on another device: on the GPU that is current.
  Arena* on(Device device) {
    if (device == device_) return this;
    int gpu = 0;
    if (Status status = current_gpu(&gpu); !status.ok()) throw AllocationFailed(status);
    if (beside_ == nullptr || gpu_beside_ != gpu) beside_ = std::make_unique<Arena>(device);
    gpu_beside_ = gpu;
    return beside_.get();
  }

  // Uninitialised, on a 64-byte boundary, until reset(); throws std::bad_alloc.
  template <typename T>
  T* take(int64_t count) {
    if (count < 0 || static_cast<uint64_t>(count) > SIZE_MAX / 4 / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  // Everything taken is free again. What lay in several blocks will fit into one.
  void reset() {
    current_ = used_ = 0;
    if (blocks_.size() > 1) {
      const size_t total = held();
      blocks_.clear();
      ++moves_;
      blocks_.push_back(Block(device_, total));
    }
    if (beside_ == nullptr) return;
    const CurrentPlace current({beside_->device(), gpu_beside_});  // where its new block is to lie
    if (!current.status().ok()) throw AllocationFailed(current.status());
    beside_->reset();
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

  // How often memory that had been taken has gone: while this stays, passes that take the same find it at the
  // same addresses.
  int64_t moves() const { return moves_; }

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
    Device device;
    size_t bytes;
    void operator()(char* memory) const {
      if (device == Device::kCuda) return Release()(memory);
      PageAllocator<char>().deallocate(memory, bytes);
    }
  };
  struct Block {
    Block(Device device, size_t size) : memory(memory_of(device, size), Free{device, size}), bytes(size) {}
    std::unique_ptr<char, Free> memory;
    size_t bytes;
  };

  static char* memory_of(Device device, size_t bytes) {
    if (device == Device::kCpu) return PageAllocator<char>().allocate(bytes);
    DeviceMemory memory;
    if (Status status = allocate("engine", bytes, &memory); !status.ok()) throw AllocationFailed(status);
    return static_cast<char*>(memory.release());
  }

  void* take_bytes(size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    while (current_ < blocks_.size() && blocks_[current_].bytes - used_ < bytes) {
      ++current_;
      used_ = 0;
    }
    if (current_ == blocks_.size()) blocks_.push_back(Block(device_, std::max({bytes, held(), kLeast})));
    void* memory = blocks_[current_].memory.get() + used_;
    used_ += bytes;
    return memory;
  }

  Device device_;
  void* stream_ = nullptr;
  int64_t moves_ = 0;
  std::unique_ptr<Arena> beside_;
  int gpu_beside_ = 0;
  std::vector<Block> blocks_;
  size_t current_ = 0;  // the block that is taken from; may be one past the last
  size_t used_ = 0;     // of it
};

}  // namespace earnest::engine
