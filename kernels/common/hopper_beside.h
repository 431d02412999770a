// SPDX-License-Identifier: Apache-2.0
// What hopper_emulated.cc and hopper_products_emulated.cc keep of one launch.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/hopper_emulator.h"

namespace earnest::simt::emulator {

struct PhaseBarrier {
  int expected = 0, pending = 0;  // arrivals
  int64_t bytes = 0;              // to come; below 0 where they were faster than who tells of them
  uint64_t phase = 0;
  bool fenced = false;  // others of the cluster, and TMA, may use it
};

struct BlockBarrier {
  int threads = 0, here = 0;
  bool vote = false;
  std::vector<bool> votes;  // of the meetings that are over
};

struct Box {
  BlockMemory memory;  // of the block that it goes to
  size_t to, barrier;  // offsets in the memory
  Matrix matrix;
  int inner, outer;
  Place place;                 // who asked for it
  const char* from = nullptr;  // not of the matrix, but so many bytes in order of addresses
  size_t bytes = 0;
};

// A copy out of shared memory (hopper_turns.h) that its thread has not waited for.
struct Leaving {
  char* to;
  size_t offset;
  std::vector<char> bytes;
  bool adds, is_read = false, closed = false;
};

struct Accumulator {
  float* d[32];
  int count;
  std::vector<float> sums;  // [32][count], hidden until the wait
  int under_way = 0;        // products
  bool is(float* const (&other)[32], int other_count) const {
    return count == other_count && std::equal(d, d + 32, other);
  }
};

struct Product {
  std::shared_ptr<Accumulator> into;
  uint32_t left_registers[32][4];
  bool left_in_registers;
  LeftOperand left;
  RightOperand right;
  Widen widen;
  uint64_t group;  // 0: not closed yet
  bool done = false;
  Place place;
};

struct WarpProducts {
  std::vector<Product> under_way;
  uint64_t groups = 0;
  uint64_t issued = 0;
  bool fenced = false;  // since the last wait
  std::vector<std::shared_ptr<Accumulator>> delivered;
};

struct BlockState {
  char* data = nullptr;
  std::vector<char> proxy;                  // what TMA and products see of shared memory
  std::map<size_t, PhaseBarrier> barriers;  // by offset in shared memory
  BlockBarrier meetings[16];
  std::map<int, WarpProducts> products;         // by warp
  std::map<int, int> registers;                 // by warp
  std::map<int, std::vector<Leaving>> leaving;  // by thread
};

class HopperState : public Beside {
 public:
  explicit HopperState(Arrival arrival) : arrival_(arrival) {}
  static HopperState& here();

  bool happen(bool nobody_goes_on) override;
  void end_thread() override;
  void end_block(uint64_t block, const Place& place) override;
  std::string state_of(const void* key) const override;

  BlockState& block(const BlockMemory& memory);
  BlockState& own_block() { return block(memory_of(cluster_rank())); }
  PhaseBarrier& barrier(const BlockMemory& memory, size_t offset);
  void count(const BlockMemory& memory, size_t offset, int arrivals, int64_t bytes_more);
  void add(Box box);
  bool at_once() { return arrival_ == Arrival::kEarly || (arrival_ == Arrival::kMixed && draw() % 2 == 0); }

 private:
  void land(const Box& box);
  void land_bytes(const Box& box);

  Arrival arrival_;
  std::map<uint64_t, BlockState> blocks_;
  std::vector<Box> boxes_;
};

// Where an address lies in a block's dynamic shared memory.
size_t offset_in(const BlockMemory& memory, const void* address, size_t bytes, const char* what);

}  // namespace earnest::simt::emulator
