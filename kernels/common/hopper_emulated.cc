// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels/common/hopper_beside.h"
#include "kernels/common/hopper_layout.h"

namespace earnest::simt {
namespace {

std::atomic<Arrival> arrival{Arrival::kDrawn};

}  // namespace

void set_arrival(Arrival value) { arrival = value; }

namespace emulator {
namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;  // that a barrier counts, PTX ISA, "tx-count"
constexpr int kMostArrivals = (1 << 20) - 1;
constexpr int64_t kRegisters = 65536;            // of a multiprocessor
constexpr uint64_t kToken = 0x7265696c72726162;  // stands where a barrier was made

uint64_t token_at(size_t offset) { return kToken ^ offset << 32; }

const void* key_of(const BlockMemory& memory, size_t offset) { return memory.data + offset; }

BlockMemory own_memory() { return memory_of(cluster_rank()); }

}  // namespace

size_t offset_in(const BlockMemory& memory, const void* address, size_t bytes, const char* what) {
  const char* begin = static_cast<const char*>(address);
  if (begin < memory.data || begin + bytes > memory.data + memory.bytes)
    fail(std::string(what) + " in dynamic shared memory", "another address");
  return static_cast<size_t>(begin - memory.data);
}

HopperState& HopperState::here() {
  auto& state = beside();
  if (state == nullptr) {
    const Arrival wanted = arrival;
    state = std::make_unique<HopperState>(wanted == Arrival::kDrawn ? static_cast<Arrival>(1 + draw() % 3)
                                                                    : wanted);
  }
  return static_cast<HopperState&>(*state);
}

BlockState& HopperState::block(const BlockMemory& memory) {
  BlockState& state = blocks_[memory.block];
  if (state.data == nullptr) {
    state.data = memory.data;
    state.proxy.assign(memory.data, memory.data + memory.bytes);
  }
  return state;
}

// ---- barriers in shared memory ----

PhaseBarrier& HopperState::barrier(const BlockMemory& memory, size_t offset) {
  auto& barriers = block(memory).barriers;
  const auto found = barriers.find(offset);
  uint64_t token = 0;
  std::memcpy(&token, memory.data + offset, sizeof token);
  if (found == barriers.end() || token != token_at(offset))
    fail("a barrier that init has made", found == barriers.end() ? "other memory" : "one written over");
  return found->second;
}

void HopperState::count(const BlockMemory& memory, size_t offset, int arrivals, int64_t bytes_more) {
  PhaseBarrier& barrier = this->barrier(memory, offset);
  barrier.bytes += bytes_more;
  if (barrier.bytes > kMostBytes || barrier.bytes < -kMostBytes)
    fail("fewer than 2^20 bytes to come at a barrier", std::to_string(barrier.bytes));
  if (arrivals > barrier.pending)
    fail("at most " + std::to_string(barrier.expected) + " arrivals in a phase", "one more");
  barrier.pending -= arrivals;
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.expected;
  wake_all(key_of(memory, offset));
}

std::string HopperState::state_of(const void* key) const {
  for (const auto& [number, block] : blocks_) {
    const auto* at = static_cast<const char*>(key);
    if (at < block.data || at >= block.data + block.proxy.size()) continue;
    const auto found = block.barriers.find(static_cast<size_t>(at - block.data));
    if (found == block.barriers.end()) continue;
    const PhaseBarrier& barrier = found->second;
    return "phase " + std::to_string(barrier.phase) + " with " + std::to_string(barrier.pending) + " of " +
           std::to_string(barrier.expected) + " arrivals and " + std::to_string(barrier.bytes) +
           " bytes to come";
  }
  return "threads that do not come";
}

void init_barrier(void* barrier, int arrivals) {
  const BlockMemory memory = own_memory();
  const size_t offset = offset_in(memory, barrier, sizeof(uint64_t), "a barrier");
  if (arrivals < 1 || arrivals > kMostArrivals)
    fail("a barrier of 1 to 2^20 - 1 arrivals", std::to_string(arrivals));
  auto& barriers = HopperState::here().block(memory).barriers;
  if (offset % 8 != 0 || barriers.count(offset) > 0)
    fail("a barrier made once, on 8 bytes", "one at " + std::to_string(offset));
  barriers[offset] = {arrivals, arrivals};
  const uint64_t token = token_at(offset);
  std::memcpy(barrier, &token, sizeof token);
}

void fence_barriers() {
  for (auto& [offset, barrier] : HopperState::here().own_block().barriers) barrier.fenced = true;
}

namespace {

// For others of the cluster and TMA. Returns the barrier's place.
size_t shared_barrier(const BlockMemory& own, const BlockMemory& memory, const void* barrier) {
  if (memory.block == 0) fail("a block of the cluster that has not ended", "one that has");
  const size_t offset = offset_in(own, barrier, sizeof(uint64_t), "a barrier");
  if (!HopperState::here().barrier(memory, offset).fenced)
    fail("fence_init between init and others than the block's threads", "none");
  return offset;
}

void check_rank(int rank) {
  if (rank < 0 || rank >= cluster_size())
    fail("a block of the cluster, below " + std::to_string(cluster_size()), std::to_string(rank));
}

}  // namespace

void arrive(void* barrier, int rank, int bytes, const Site&) {
  check_rank(rank);
  HopperState& state = HopperState::here();
  const BlockMemory own = own_memory(), memory = memory_of(rank);
  const size_t offset = rank == cluster_rank() ? offset_in(own, barrier, sizeof(uint64_t), "a barrier")
                                               : shared_barrier(own, memory, barrier);
  if (bytes < 0) fail("bytes to come, not below 0", std::to_string(bytes));
  state.count(memory, offset, 1, bytes);
}

void wait_for_phase(void* barrier, int parity, const Site& site) {
  HopperState& state = HopperState::here();
  const BlockMemory memory = own_memory();
  const size_t offset = offset_in(memory, barrier, sizeof(uint64_t), "a barrier");
  if (parity != 0 && parity != 1) fail("a parity of 0 or 1", std::to_string(parity));
  while (static_cast<int>(state.barrier(memory, offset).phase & 1) == parity)
    sleep(parity == 0 ? "wait(0)" : "wait(1)", key_of(memory, offset), site);
}

// ---- copies ----

// PTX ISA and the driver's cuTensorMapEncodeTiled, with boxes of 64 lines of 128 bytes.
Status check_matrix(const char* op, const Matrix& m) {
  const bool right = reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.pitch_bytes % 16 == 0 &&
                     m.pitch_bytes > 0 && m.pitch_bytes < int64_t{1} << 40 && m.inner >= 1 && m.outer >= 1 &&
                     m.inner <= int64_t{1} << 32 && m.outer <= int64_t{1} << 32;
  if (right) return {};
  return Status(StatusCode::kInternal,
                "[" + std::string(op) + "] tensor map: expected one, got the driver's error 1");
}

void bring_box(unsigned mask, void* to, const Matrix& matrix, int inner, int outer, void* barrier,
               const Site&) {
  const BlockMemory own = own_memory();
  const size_t offset = offset_in(own, to, hopper::kBoxBytes, "a box");
  if ((own.address + offset) % 128 != 0) fail("a box on 128 bytes", "one at " + std::to_string(offset));
  if (mask == 0) fail("a block of the cluster for a box", "none");
  for (int rank = 0; rank < 16; ++rank) {
    if ((mask >> rank & 1u) == 0) continue;
    check_rank(rank);
    const BlockMemory memory = memory_of(rank);
    HopperState::here().add(
        {memory, offset, shared_barrier(own, memory, barrier), matrix, inner, outer, emulator::here()});
  }
}

void HopperState::add(Box box) {
  if (at_once()) return land(box);
  boxes_.push_back(box);
}

bool HopperState::happen(bool nobody_goes_on) {
  if (boxes_.empty()) return false;
  if (!nobody_goes_on && (arrival_ == Arrival::kLate || draw() % 16 != 0)) return false;
  const auto chosen = boxes_.begin() + static_cast<std::ptrdiff_t>(draw() % boxes_.size());
  const Box box = *chosen;
  boxes_.erase(chosen);
  land(box);
  return true;
}

// Shared memory's own address decides where the pieces of a line go (PTX ISA, "swizzling modes").
void HopperState::land(const Box& box) {
  if (box.from != nullptr) return land_bytes(box);
  const Matrix& matrix = box.matrix;
  BlockState& state = block(box.memory);
  for (int64_t line = 0; line < hopper::kBox; ++line) {
    for (int64_t piece = 0; piece < 8; ++piece) {
      char bytes[16] = {};
      const int64_t row = box.outer + line;
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t column = box.inner + piece * 8 + i;
        if (row < 0 || row >= matrix.outer || column < 0 || column >= matrix.inner) continue;
        std::memcpy(bytes + 2 * i, matrix.data + row * matrix.pitch_bytes + 2 * column, 2);
      }
      const size_t plain = box.memory.address + box.to + static_cast<size_t>(line * 128 + piece * 16);
      const size_t at = (plain ^ (plain >> 7 & 7) << 4) - box.memory.address;
      if (std::memcmp(box.memory.data + at, state.proxy.data() + at, sizeof bytes) != 0)
        fail_at(box.place, "fence_shared and a barrier between what threads write and a box over it", "none");
      std::memcpy(box.memory.data + at, bytes, sizeof bytes);
      std::memcpy(state.proxy.data() + at, bytes, sizeof bytes);
    }
  }
  count(box.memory, box.barrier, 0, -int64_t{hopper::kBoxBytes});
}

void fence_shared() {
  const BlockMemory memory = own_memory();
  std::vector<char>& proxy = HopperState::here().block(memory).proxy;
  proxy.resize(memory.bytes);
  // Not assign: under AddressSanitizer memmove goes byte by byte, and every thread of a block comes by here.
  std::memcpy(proxy.data(), memory.data, memory.bytes);
}

uint32_t shared_address(const void* address) {
  const BlockMemory memory = own_memory();
  return memory.address + static_cast<uint32_t>(offset_in(memory, address, 1, "an array"));
}

// ---- barriers of the block ----

bool meet_some(int barrier, int threads, bool vote, bool waits, const Site& site) {
  if (barrier < 1 || barrier > 15 || threads < 1 || threads % 32 != 0)
    fail("barriers 1 to 15 of whole warps",
         std::to_string(barrier) + " of " + std::to_string(threads) + " threads");
  BlockBarrier& meeting = HopperState::here().own_block().meetings[barrier];
  if (meeting.here == 0) meeting.threads = threads;
  if (meeting.threads != threads)
    fail("barrier " + std::to_string(barrier) + " of " + std::to_string(meeting.threads) + " threads",
         std::to_string(threads));
  meeting.vote |= vote;
  const size_t number = meeting.votes.size();
  if (++meeting.here == threads) {
    meeting.votes.push_back(meeting.vote);
    meeting.here = 0, meeting.vote = false;
    wake_all(&meeting);
    return meeting.votes[number];
  }
  while (waits && meeting.votes.size() == number) sleep("meet", &meeting, site);
  return waits && meeting.votes[number];
}

// ---- registers ----

void change_registers(int registers, bool takes) {
  if (registers < 24 || registers > 256 || registers % 8 != 0)
    fail("24 to 256 registers, a multiple of 8", std::to_string(registers));
  const dim3 size = emulator::here().block_dim;
  const int64_t at_launch = std::min<int64_t>(kRegisters / (size.x * size.y * size.z) / 8 * 8, 256);
  if (takes ? registers < at_launch : registers > at_launch)
    fail(std::string(takes ? "no fewer" : "no more") + " registers than the launch's " +
             std::to_string(at_launch),
         std::to_string(registers));
  HopperState::here().own_block().registers[thread_number() / 32] = registers;
}

namespace {

void check_registers(const BlockState& state, const Place& place) {
  const dim3 size = place.block_dim;
  const int64_t threads = int64_t{size.x} * size.y * size.z,
                each = std::min<int64_t>(kRegisters / threads / 8 * 8, 256);
  int64_t taken = 0;
  for (int warp = 0; warp < threads / 32; ++warp) {
    const auto of = [&](int w) {
      const auto found = state.registers.find(w);
      return found == state.registers.end() ? each : found->second;
    };
    if (of(warp) != of(warp / 4 * 4))
      fail_at(place, "registers changed by all four warps of a warpgroup alike", "others");
    taken += 32 * of(warp);
  }
  if (taken > each * threads)
    fail_at(place, "at most the launch's " + std::to_string(each * threads) + " registers",
            std::to_string(taken));
}

}  // namespace

void HopperState::end_block(uint64_t number, const Place& place) {
  const auto found = blocks_.find(number);
  if (found == blocks_.end()) return;
  for (const Box& box : boxes_)
    if (box.memory.block == number) fail_at(place, "no box on its way to a block that ends", "one");
  const BlockState& state = found->second;
  for (const auto& [thread, copies] : state.leaving)
    if (!copies.empty()) fail_at(place, "wait_written before a block ends", "copies on their way out of it");
  if (!state.registers.empty()) check_registers(state, place);
  for (const auto& [warp, products] : state.products) {
    const auto first = state.products.find(warp / 4 * 4);
    if (first == state.products.end() || first->second.issued != products.issued ||
        state.products.count(warp / 4 * 4 + 3) == 0)
      fail_at(place, "as many products of each warp of a warpgroup", "others");
  }
  blocks_.erase(found);
}

}  // namespace emulator
}  // namespace earnest::simt
