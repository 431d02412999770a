// SPDX-License-Identifier: Apache-2.0
// Blocks of threads as the emulator (simt_emulated.cc) keeps them while they run.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels/common/fibre.h"
#include "kernels/common/simt_emulator.h"

namespace earnest::simt {

constexpr int kWarp = 32;
constexpr size_t kDynamicAlignment = 1024;

// Bytes that AddressSanitizer can watch the ends of.
class SharedMemory {
 public:
  SharedMemory(const void* site, size_t bytes, size_t alignment)
      : site_(site), bytes_(bytes), alignment_(alignment) {
    data_ = static_cast<char*>(::operator new(bytes, std::align_val_t(alignment)));
    std::memset(data_, 0xff, bytes);
  }
  ~SharedMemory() { ::operator delete(data_, std::align_val_t(alignment_)); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  const void* site() const { return site_; }
  size_t bytes() const { return bytes_; }
  char* data() const { return data_; }
  bool holds(const void* address, size_t bytes) const {
    const char* begin = static_cast<const char*>(address);
    return begin >= data_ && begin + bytes <= data_ + bytes_;
  }

 private:
  const void* site_;
  size_t bytes_, alignment_;
  char* data_;
};

enum class State { kRunnable, kAtBlock, kAtWarp, kAtCluster, kAsleep, kEnded };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, total;  // the rest of total is filled with zeros
};

struct Block;

// Stacks of launches that are over serve the next ones.
inline thread_local std::vector<std::unique_ptr<FibreStack>> idle_stacks;

inline std::unique_ptr<FibreStack> take_stack() {
  if (idle_stacks.empty()) return std::make_unique<FibreStack>();
  std::unique_ptr<FibreStack> stack = std::move(idle_stacks.back());
  idle_stacks.pop_back();
  return stack;
}

struct Thread {
  Thread() = default;
  ~Thread() { idle_stacks.push_back(std::move(stack)); }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  Fibre fibre;
  std::unique_ptr<FibreStack> stack = take_stack();
  emulator::Place place;
  Block* block = nullptr;
  int number = 0;  // in the block

  State state = State::kRunnable;
  const char* meeting = nullptr;  // what it waits at: its name, line, mask
  emulator::Site site;
  uint32_t mask = 0;
  void* payload = nullptr;
  const void* key = nullptr;         // what it sleeps for
  std::vector<Copy> copies;          // of groups that are committed, then of the one that is not
  std::vector<size_t> group_ends{};  // in copies
};

// Blocks that run side by side; null those that have ended.
struct Cluster {
  std::vector<Block*> blocks;
  int alive = 0, here = 0;  // threads, and those that stand at the cluster's meeting
};

struct Block {
  uint64_t number = 0;  // in the launch, from 1
  int rank = 0;         // in the cluster
  std::shared_ptr<Cluster> cluster;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<SharedMemory>> shared;
  std::unique_ptr<SharedMemory> dynamic;
  int alive = 0, runnable = 0, at_block = 0;
  int elsewhere = 0;  // threads that wait for what may happen outside of the block
};

}  // namespace earnest::simt
