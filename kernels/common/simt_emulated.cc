// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/common/simt_block.h"

namespace earnest::simt {
namespace {

constexpr int kBlocksUnderWay = 3;
constexpr int64_t kMostIdlePauses =
    1'000'000;                             // without anything else happening: nobody will end the waiting
constexpr int64_t kManyIdlePauses = 1000;  // what goes on beside the threads may be what ends the waiting
constexpr uint64_t kMostStepsBehind = 4096;
constexpr int kDrawsPastIt = 8;
constexpr size_t kMostThreads = 1024;
constexpr unsigned kMostBlocksOfCluster = 8;
constexpr size_t kMostSharedBytes = 227 * 1024;  // of a block on an H100 or H200

std::atomic<uint64_t> launches{0};
std::atomic<uint64_t> seed{[] {
  const char* text = std::getenv("EARNEST_SIMT_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 1ull;
}()};

std::string text_of(const dim3& x) {
  return "(" + std::to_string(x.x) + ", " + std::to_string(x.y) + ", " + std::to_string(x.z) + ")";
}
uint64_t volume(const dim3& x) { return uint64_t{x.x} * x.y * x.z; }
dim3 index_of(uint64_t i, const dim3& size) {
  return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
          static_cast<unsigned>(i / size.x / size.y)};
}

std::string line_of(const Thread& thread) {
  const std::string file = thread.site.file_name();
  return std::string(thread.meeting) + " (" + file.substr(file.find_last_of('/') + 1) + ":" +
         std::to_string(thread.site.line()) + ")";
}

struct Failed {};  // leaves a kernel from within

class Launch {
 public:
  explicit Launch(const emulator::Grid& grid)
      : grid_(grid),
        draw_(seed * 0x9e3779b97f4a7c15ull + ++launches),
        address_(1024 + static_cast<uint32_t>(draw_() % 64 * 16)) {}

  Status run();

  Thread& current() { return *current_; }
  const emulator::Grid& grid() const { return grid_; }
  uint64_t draw() { return draw_(); }
  uint32_t address() const { return address_; }
  std::unique_ptr<emulator::Beside>& beside() { return beside_; }
  void wake(Thread* thread) {
    if (thread->state == State::kAsleep || thread->state == State::kAtCluster) --thread->block->elsewhere;
    thread->state = State::kRunnable;
    ++thread->block->runnable;
    runnable_.push_back(thread);
    idle_pauses_ = 0;
  }
  void meet_block(Thread* self, emulator::Combine combine);
  void meet_warp(Thread* self, emulator::Combine combine);
  void meet_cluster(Thread* self);
  void sleep(Thread* self, const void* key) {
    self->key = key;
    self->state = State::kAsleep;
    ++self->block->elsewhere;
    self->fibre.suspend();
  }
  void wake_all(const void* key) {
    for (const auto& block : under_way_) {
      for (const auto& thread : block->threads)
        if (thread->state == State::kAsleep && thread->key == key) wake(thread.get());
    }
  }
  void pause() {
    ++idle_pauses_;
    current_->fibre.suspend();
  }
  [[noreturn]] void fail(const emulator::Place& place, const std::string& expected, const std::string& got) {
    report(place, expected, got);
    throw Failed();
  }

 private:
  void begin(uint64_t block_index, const std::shared_ptr<Cluster>& cluster);
  size_t choose();
  void step(size_t choice);
  void end(Block* block);
  bool happen(bool nobody_goes_on) {
    try {
      return beside_ && beside_->happen(nobody_goes_on);
    } catch (const Failed&) {  // it has been reported
      return true;
    }
  }
  void explain_stall(const Block& block);
  void explain_sleep();
  void report(const emulator::Place& place, const std::string& expected, const std::string& got) {
    failure_ =
        Status(StatusCode::kInternal, "[" + std::string(grid_.label.op) + "] kernel " + grid_.label.kernel +
                                          ", block " + text_of(place.block) + ", thread " +
                                          text_of(place.thread) + ": expected " + expected + ", got " + got);
  }
  static void body(void* launch) {
    auto* self = static_cast<Launch*>(launch);
    try {
      self->grid_.call(self->grid_.arguments);
      if (self->beside_) self->beside_->end_thread();
    } catch (const Failed&) {  // it has been reported
    }
    self->idle_pauses_ = 0;
    self->current_->state = State::kEnded;
  }

  const emulator::Grid& grid_;
  std::mt19937_64 draw_;
  std::vector<std::unique_ptr<Block>> under_way_, resting_;  // those that rest lend their stacks to the next
  std::vector<Thread*> runnable_;
  Thread* current_ = nullptr;
  int64_t idle_pauses_ = 0;
  uint64_t blocks_begun_ = 0;
  uint64_t left_behind_ = 0, left_behind_steps_ = 0;  // a warp, and for how long
  uint32_t address_;                                  // where dynamic shared memory begins, as the GPU counts
  std::unique_ptr<emulator::Beside> beside_;
  Status failure_;
};

thread_local Launch* active = nullptr;

void Launch::begin(uint64_t block_index, const std::shared_ptr<Cluster>& cluster) {
  std::unique_ptr<Block> block;
  if (resting_.empty()) {
    block = std::make_unique<Block>();
    for (uint64_t i = 0; i < volume(grid_.block); ++i) block->threads.push_back(std::make_unique<Thread>());
  } else {
    block = std::move(resting_.back());
    resting_.pop_back();
  }
  block->shared.clear();
  block->dynamic = std::make_unique<SharedMemory>(nullptr, grid_.shared_bytes, kDynamicAlignment);
  block->alive = static_cast<int>(block->threads.size());
  block->runnable = block->at_block = block->elsewhere = 0;
  block->number = ++blocks_begun_;
  block->cluster = cluster;
  block->rank = static_cast<int>(cluster->blocks.size());
  cluster->blocks.push_back(block.get());
  cluster->alive += block->alive;
  for (int i = 0; i < block->alive; ++i) {
    Thread* thread = block->threads[i].get();
    thread->place = {index_of(i, grid_.block), index_of(block_index, grid_.grid), grid_.block, grid_.grid};
    thread->block = block.get();
    thread->number = i;
    thread->copies.clear();
    thread->group_ends.clear();
    thread->fibre.start(thread->stack.get(), &Launch::body, this);
    wake(thread);
  }
  under_way_.push_back(std::move(block));
}

// For a while some warp falls behind all others, then another one.
size_t Launch::choose() {
  size_t choice = draw_() % runnable_.size();
  if (left_behind_steps_-- == 0) {
    left_behind_ = runnable_[choice]->block->number * kMostThreads + runnable_[choice]->number / kWarp;
    left_behind_steps_ = draw_() % kMostStepsBehind;
  }
  const auto is_left_behind = [&] {
    const Thread& one = *runnable_[choice];
    return one.block->number * kMostThreads + one.number / kWarp == left_behind_;
  };
  for (int i = 0; i < kDrawsPastIt && is_left_behind(); ++i) choice = draw_() % runnable_.size();
  return choice;
}

// One thread goes on, until it must wait.
void Launch::step(size_t choice) {
  Thread* thread = current_ = runnable_[choice];
  thread->fibre.resume();
  if (!failure_.ok() || thread->state == State::kRunnable) return;
  // Others may have been woken meanwhile, but only behind it.
  runnable_[choice] = runnable_.back();
  runnable_.pop_back();
  Block* block = thread->block;
  --block->runnable;
  if (thread->state == State::kEnded) --block->cluster->alive;
  if (thread->state == State::kEnded && --block->alive == 0) {
    end(block);
  } else if (block->runnable == 0 && block->elsewhere == 0) {
    explain_stall(*block);
  }
}

void Launch::end(Block* block) {
  block->cluster->blocks[static_cast<size_t>(block->rank)] = nullptr;
  const auto place =
      std::find_if(under_way_.begin(), under_way_.end(), [&](const auto& one) { return one.get() == block; });
  resting_.push_back(std::move(*place));
  under_way_.erase(place);
  try {
    if (beside_) beside_->end_block(block->number, current_->place);
  } catch (const Failed&) {  // it has been reported
  }
}

Status Launch::run() {
  std::vector<uint64_t> order(volume(grid_.grid) / grid_.cluster);
  std::iota(order.begin(), order.end(), uint64_t{0});
  std::shuffle(order.begin(), order.end(), draw_);
  size_t begun = 0;
  while (failure_.ok()) {
    while (under_way_.size() < kBlocksUnderWay && begun < order.size()) {
      const auto cluster = std::make_shared<Cluster>();
      for (unsigned rank = 0; rank < grid_.cluster; ++rank)
        begin(order[begun] * grid_.cluster + rank, cluster);
      ++begun;
    }
    if (happen(runnable_.empty() || idle_pauses_ > kManyIdlePauses)) {
      idle_pauses_ = 0;
      continue;
    }
    if (runnable_.empty()) {
      if (!under_way_.empty()) explain_sleep();
      break;
    }
    step(choose());
    if (idle_pauses_ > kMostIdlePauses)
      report(current_->place, "an end of waiting for other blocks",
             "none after " + std::to_string(idle_pauses_) + " looks");
  }
  return failure_;
}

// Nobody in the block can go on: says what one waits for and who does not come.
void Launch::explain_stall(const Block& block) {
  const auto find = [&](auto wanted) -> const Thread* {
    for (const auto& thread : block.threads)
      if (wanted(*thread)) return thread.get();
    return nullptr;
  };
  const Thread* waiting = find([](const Thread& one) { return one.state == State::kAtWarp; });
  std::string whom = "every lane of its mask";
  const Thread* absent = nullptr;
  if (waiting) {
    absent = find([&](const Thread& one) {
      return one.number / kWarp == waiting->number / kWarp && (waiting->mask >> (one.number % kWarp) & 1u) &&
             (one.state != State::kAtWarp || one.mask != waiting->mask || one.meeting != waiting->meeting);
    });
  } else {
    waiting = find([](const Thread& one) { return one.state == State::kAtBlock; });
    whom = "every thread of the block";
    absent = find([&](const Thread& one) {
      return one.state != State::kAtBlock || one.meeting != waiting->meeting ||
             one.site.line() != waiting->site.line();
    });
  }
  const std::string there = absent == nullptr ? "lanes that do not exist"
                            : absent->state == State::kEnded
                                ? "thread " + text_of(absent->place.thread) + " at its end"
                                : "thread " + text_of(absent->place.thread) + " at " + line_of(*absent);
  report(waiting->place, whom + " at " + line_of(*waiting), there);
}

// Nobody at all can go on, and some wait for what nothing will bring about any more.
void Launch::explain_sleep() {
  for (const auto& block : under_way_) {
    for (const auto& thread : block->threads) {
      if (thread->state != State::kAsleep && thread->state != State::kAtCluster) continue;
      const bool asleep = thread->state == State::kAsleep && beside_ != nullptr;
      return report(thread->place, "an end of waiting at " + line_of(*thread),
                    asleep ? beside_->state_of(thread->key) : "threads of the cluster that do not come");
    }
  }
}

void Launch::meet_block(Thread* self, emulator::Combine combine) {
  Block& block = *self->block;
  self->state = State::kAtBlock;
  if (++block.at_block < static_cast<int>(block.threads.size())) return self->fibre.suspend();
  // The last to come looks whether all stand at the same line.
  const bool same = std::all_of(block.threads.begin(), block.threads.end(), [&](const auto& one) {
    return one->meeting == self->meeting && one->site.line() == self->site.line();
  });
  if (!same) return self->fibre.suspend();
  block.at_block = 0;
  if (combine) {
    std::vector<void*> payloads;
    for (const auto& one : block.threads) payloads.push_back(one->payload);
    combine(payloads.data(), static_cast<int>(payloads.size()));
  }
  for (const auto& one : block.threads)
    if (one.get() != self) wake(one.get());
  self->state = State::kRunnable;
}

void Launch::meet_warp(Thread* self, emulator::Combine combine) {
  if (!(self->mask >> (self->number % kWarp) & 1u))
    fail(self->place, "a mask that names the calling lane " + std::to_string(self->number % kWarp),
         std::to_string(self->mask) + " at " + line_of(*self));
  self->state = State::kAtWarp;
  const auto& threads = self->block->threads;
  const size_t first = self->number / kWarp * kWarp;
  void* payloads[kWarp] = {};
  for (size_t lane = 0; lane < kWarp; ++lane) {
    if (!(self->mask >> lane & 1u)) continue;
    if (first + lane >= threads.size()) return self->fibre.suspend();
    const Thread& one = *threads[first + lane];
    if (one.state != State::kAtWarp || one.mask != self->mask || one.meeting != self->meeting)
      return self->fibre.suspend();
    payloads[lane] = one.payload;
  }
  if (combine) combine(payloads, kWarp);
  for (size_t lane = 0; lane < kWarp; ++lane) {
    if ((self->mask >> lane & 1u) && threads[first + lane].get() != self) wake(threads[first + lane].get());
  }
  self->state = State::kRunnable;
}

void Launch::meet_cluster(Thread* self) {
  Cluster& cluster = *self->block->cluster;
  ++self->block->elsewhere;
  self->state = State::kAtCluster;
  if (++cluster.here < cluster.alive) return self->fibre.suspend();
  cluster.here = 0;
  for (Block* block : cluster.blocks) {
    for (size_t i = 0; block != nullptr && i < block->threads.size(); ++i) {
      Thread* one = block->threads[i].get();
      if (one != self && one->state == State::kAtCluster) wake(one);
    }
  }
  --self->block->elsewhere;
  self->state = State::kRunnable;
}

}  // namespace

void set_seed(uint64_t value) {
  seed = value;
  launches = 0;
}

namespace emulator {

const Place& here() { return active->current().place; }

void fail(const std::string& expected, const std::string& got) { active->fail(here(), expected, got); }
void fail_at(const Place& place, const std::string& expected, const std::string& got) {
  active->fail(place, expected, got);
}

void fail_index(const char* name, int64_t index, int64_t size) {
  fail("an index in [0, " + std::to_string(size) + ") of shared " + name, std::to_string(index));
}
void fail_offset(const char* name, int64_t offset, int64_t size) {
  fail("an offset in [0, " + std::to_string(size) + "] of shared " + name, std::to_string(offset));
}
void fail_part(size_t offset, size_t bytes, size_t all) {
  fail("aligned parts of the " + std::to_string(all) + " bytes of dynamic shared memory",
       std::to_string(bytes) + " bytes at " + std::to_string(offset));
}

Status run(const Grid& grid) {
  const auto refuse = [&](const std::string& expected, const std::string& got) {
    return Status(StatusCode::kInvalidArgument, "[" + std::string(grid.label.op) + "] kernel " +
                                                    grid.label.kernel + ": expected " + expected + ", got " +
                                                    got);
  };
  if (active) return refuse("a launch from the host", "one from a kernel");
  if (volume(grid.grid) == 0 || grid.grid.x > 0x7fffffffu || grid.grid.y > 65535 || grid.grid.z > 65535)
    return refuse("a grid of [1, 2^31) x [1, 2^16) x [1, 2^16) blocks", text_of(grid.grid));
  if (volume(grid.block) == 0 || volume(grid.block) > kMostThreads || grid.block.z > 64)
    return refuse("1 to 1024 threads in a block", text_of(grid.block));
  if (grid.cluster < 1 || grid.cluster > kMostBlocksOfCluster || grid.grid.x % grid.cluster != 0)
    return refuse("clusters of 1 to 8 blocks that share out the grid", std::to_string(grid.cluster));
  if (grid.shared_bytes > kMostSharedBytes)
    return refuse("at most 232448 bytes of shared memory", std::to_string(grid.shared_bytes));
  list(grid);
  Launch launch(grid);
  active = &launch;
  const Status status = launch.run();
  active = nullptr;
  return status;
}

void meet_block(const char* name, void* payload, Combine combine, const Site& site) {
  Thread& self = active->current();
  self.meeting = name, self.payload = payload, self.site = site;
  active->meet_block(&self, combine);
}

void meet_warp(const char* name, uint32_t mask, void* payload, Combine combine, const Site& site) {
  Thread& self = active->current();
  self.meeting = name, self.payload = payload, self.site = site, self.mask = mask;
  active->meet_warp(&self, combine);
}

void pause() { active->pause(); }

int thread_number() { return active->current().number; }
uint64_t draw() { return active->draw(); }
int cluster_rank() { return active->current().block->rank; }
int cluster_size() { return static_cast<int>(active->grid().cluster); }
BlockMemory memory_of(int rank) {
  const Block* block = active->current().block->cluster->blocks[static_cast<size_t>(rank)];
  if (block == nullptr) return {0, nullptr, 0, 0};
  return {block->number, block->dynamic->data(), block->dynamic->bytes(), active->address()};
}
void meet_cluster(const char* name, const Site& site) {
  Thread& self = active->current();
  self.meeting = name, self.site = site;
  active->meet_cluster(&self);
}
void sleep(const char* name, const void* key, const Site& site) {
  Thread& self = active->current();
  self.meeting = name, self.site = site;
  active->sleep(&self, key);
}
void wake_all(const void* key) { active->wake_all(key); }
std::unique_ptr<Beside>& beside() { return active->beside(); }

void* static_shared(const void* site, size_t bytes) {
  auto& shared = active->current().block->shared;
  for (const auto& one : shared)
    if (one->site() == site) return one->data();
  shared.push_back(std::make_unique<SharedMemory>(site, bytes, 128));
  return shared.back()->data();
}

void* dynamic_shared(size_t* bytes) {
  const SharedMemory& memory = *active->current().block->dynamic;
  *bytes = memory.bytes();
  return memory.data();
}

bool is_shared(const void* address, size_t bytes) {
  const Block& block = *active->current().block;
  return block.dynamic->holds(address, bytes) ||
         std::any_of(block.shared.begin(), block.shared.end(),
                     [&](const auto& one) { return one->holds(address, bytes); });
}

void copy_later(void* to, const void* from, size_t bytes, size_t total) {
  active->current().copies.push_back({to, from, bytes, total});
}

void commit_copies() {
  Thread& self = active->current();
  self.group_ends.push_back(self.copies.size());
}

void wait_for_copies(int groups_left) {
  Thread& self = active->current();
  const size_t groups = self.group_ends.size(), left = static_cast<size_t>(groups_left);
  if (groups <= left) return;
  const size_t done = self.group_ends[groups - left - 1];
  for (size_t i = 0; i < done; ++i) {
    const Copy& copy = self.copies[i];
    std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.total - copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
  self.group_ends.erase(self.group_ends.begin(), self.group_ends.end() - static_cast<std::ptrdiff_t>(left));
  for (size_t& end : self.group_ends) end -= done;
}

}  // namespace emulator
}  // namespace earnest::simt
