// SPDX-License-Identifier: Apache-2.0
// Runs a grid of threads on one thread of the CPU, so that a kernel's logic can be tested without a GPU, with
// its mistakes found. Each thread is a fibre that runs until it must wait. A few blocks are under way at a
// time, begun in shuffled order, and who goes on next is drawn, with some warp left behind for a while:
// nothing may rely on an order. What on a GPU would hang, race or be undefined ends the launch with a status
// that names kernel, block and thread.
//
// simt_builtins.h gives all this CUDA's names.
#pragma once

#include <cstdint>
#include <memory>
#include <source_location>
#include <string>

#include "kernels/common/status.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace earnest::simt {

// What a launch is called in messages: "[gae] kernel scan, block ...".
struct Label {
  const char* op;
  const char* kernel;
};

// Orders are drawn from it: another seed, other orders. EARNEST_SIMT_SEED in the environment sets it too.
void set_seed(uint64_t seed);

namespace emulator {

using Site = std::source_location;

// Where the calling thread of the grid stands.
struct Place {
  dim3 thread, block, block_dim, grid_dim;
};
const Place& here();

struct Grid {
  Label label;
  dim3 grid, block;
  unsigned cluster;  // blocks that run side by side, numbered along x; 1: each for itself
  size_t shared_bytes;
  const void* kernel;                   // the function
  void (*call)(const void* arguments);  // the same, as one thread
  const void* arguments;
};
Status run(const Grid& grid);
// Writes down how it is launched, if asked to (launches_emulated.cc).
void list(const Grid& grid);
// Runs it now, or where the stream is captured (cuda.h) keeps it, with the arguments.
Status put(void* stream, const Grid& grid, std::shared_ptr<const void> arguments);

// Ends the launch: "[op] kernel K, block (..), thread (..): expected X, got Y".
[[noreturn]] void fail(const std::string& expected, const std::string& got);
[[noreturn]] void fail_at(const Place& place, const std::string& expected, const std::string& got);
// The same of shared memory's bounds, which are asked for so often that a kernel would else be mostly words.
[[noreturn]] void fail_index(const char* name, int64_t index, int64_t size);
[[noreturn]] void fail_offset(const char* name, int64_t offset, int64_t size);
[[noreturn]] void fail_part(size_t offset, size_t bytes, size_t all);

// Threads meet; when all are there, `combine` (or null) sees the payload of each and writes its result there.
// In the block different lines of the source are different meetings; in the warp those of `mask` meet, and
// the payloads of other lanes are null.
using Combine = void (*)(void* const* payloads, int count);
void meet_block(const char* name, void* payload, Combine combine, const Site& site);
void meet_warp(const char* name, uint32_t mask, void* payload, Combine combine, const Site& site);

// Lets others go on: what a thread does that waits for other blocks. Endless waiting is found out.
void pause();

// Memory that the block shares: poisoned (0xff bytes: NaN, -1), exactly as large as asked. Whoever names the
// same `site` gets the same memory.
void* static_shared(const void* site, size_t bytes);
void* dynamic_shared(size_t* bytes);
bool is_shared(const void* address, size_t bytes);

// Copies that the calling thread has asked for, and that only happen when it waits for them.
void copy_later(void* to, const void* from, size_t bytes, size_t total);
void commit_copies();
void wait_for_copies(int groups_left);

// ---- what Hopper's instructions (hopper_emulated.cc) are made of ----

int thread_number();  // of the calling thread in its block
uint64_t draw();      // what decides orders

// A block of the caller's cluster, which may have ended.
int cluster_rank();
int cluster_size();
struct BlockMemory {
  uint64_t block;  // a number of its own in the launch; 0: the block has ended
  char* data;      // dynamic shared memory
  size_t bytes;
  uint32_t address;  // of its first byte, as the GPU counts: a multiple of 16, no more is promised
};
BlockMemory memory_of(int rank);
void meet_cluster(const char* name, const Site& site);

// Waits until somebody calls wake_all with the same key. Who waits for nothing that could still happen is
// found.
void sleep(const char* name, const void* key, const Site& site);
void wake_all(const void* key);

// What goes on beside a launch's threads.
class Beside {
 public:
  virtual ~Beside() = default;
  // Called between threads' steps: may let something happen, and must if it can where nobody else goes on.
  // Whether something has happened.
  virtual bool happen(bool nobody_goes_on) = 0;
  virtual void end_thread() = 0;  // the calling one
  virtual void end_block(uint64_t block, const Place& place) = 0;
  virtual std::string state_of(const void* key) const = 0;  // for messages, of what threads sleep for
};
std::unique_ptr<Beside>& beside();

}  // namespace emulator
}  // namespace earnest::simt
