// SPDX-License-Identifier: Apache-2.0
// Copies in order of addresses by TMA, in the emulator.
#include <cstring>

#include "kernels/common/hopper_beside.h"
#include "kernels/common/hopper_turns_emulator.h"

namespace earnest::simt::emulator {
namespace {

BlockMemory own_memory() { return memory_of(cluster_rank()); }

void check_bytes(const void* to, const void* from, int bytes) {
  const bool aligned =
      reinterpret_cast<uintptr_t>(to) % 16 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  if (!aligned || bytes <= 0 || bytes % 16 != 0)
    fail("a multiple of 16 bytes, on 16", std::to_string(bytes) + (aligned ? "" : ", elsewhere"));
}

// What TMA sees of shared memory.
void read(Leaving& copy) {
  if (copy.is_read) return;
  const BlockMemory memory = own_memory();
  const std::vector<char>& proxy = HopperState::here().block(memory).proxy;
  if (std::memcmp(memory.data + copy.offset, proxy.data() + copy.offset, copy.bytes.size()) != 0)
    fail("fence_shared and a barrier between what threads write and a copy of it", "none");
  std::memcpy(copy.bytes.data(), memory.data + copy.offset, copy.bytes.size());
  copy.is_read = true;
}

void write(const Leaving& copy) {
  for (size_t i = 0; i < copy.bytes.size(); i += sizeof(float)) {
    float before, more;
    std::memcpy(&before, copy.to + i, sizeof before);
    std::memcpy(&more, copy.bytes.data() + i, sizeof more);
    if (copy.adds) more += before;
    std::memcpy(copy.to + i, &more, sizeof more);
  }
}

std::vector<Leaving>& own_copies() { return HopperState::here().own_block().leaving[thread_number()]; }

}  // namespace

void bring_bytes(void* to, const void* from, int bytes, void* barrier) {
  const BlockMemory own = own_memory();
  check_bytes(to, from, bytes);
  const size_t offset = offset_in(own, to, static_cast<size_t>(bytes), "bytes"),
               at = offset_in(own, barrier, sizeof(uint64_t), "a barrier");
  if (!HopperState::here().barrier(own, at).fenced) fail("fence_init between init and TMA", "none");
  Box box{own, offset, at, {}, 0, 0, here()};
  box.from = static_cast<const char*>(from), box.bytes = static_cast<size_t>(bytes);
  HopperState::here().add(box);
}

void HopperState::land_bytes(const Box& box) {
  BlockState& state = block(box.memory);
  if (std::memcmp(box.memory.data + box.to, state.proxy.data() + box.to, box.bytes) != 0)
    fail_at(box.place, "fence_shared and a barrier between what threads write and bytes over it", "none");
  std::memcpy(box.memory.data + box.to, box.from, box.bytes);
  std::memcpy(state.proxy.data() + box.to, box.from, box.bytes);
  count(box.memory, box.barrier, 0, -static_cast<int64_t>(box.bytes));
}

void take_bytes(void* to, const void* from, int bytes, bool adds) {
  check_bytes(to, from, bytes);
  Leaving copy;
  copy.to = static_cast<char*>(to);
  copy.offset = offset_in(own_memory(), from, static_cast<size_t>(bytes), "bytes");
  copy.bytes.resize(static_cast<size_t>(bytes));
  copy.adds = adds;
  if (HopperState::here().at_once()) read(copy);
  own_copies().push_back(std::move(copy));
}

void close_copies() {
  for (Leaving& copy : own_copies()) copy.closed = true;
}

void wait_for_copies_out(bool written) {
  std::vector<Leaving>& copies = own_copies();
  for (Leaving& copy : copies) {
    if (!copy.closed) fail("close_copies before the wait", "a copy in no group");
    read(copy);
    if (written) write(copy);
  }
  if (written) copies.clear();
}

void check_written() {
  if (!own_copies().empty()) fail("wait_written before a turn is passed", "copies on their way");
}

}  // namespace earnest::simt::emulator
