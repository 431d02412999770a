// SPDX-License-Identifier: Apache-2.0
// hopper.h in the emulator.
#pragma once

#include <cstdint>

#include "kernels/common/hopper_emulator.h"
#include "kernels/common/hopper_layout.h"
#include "kernels/common/simt_builtins.h"
#include "kernels/common/status.h"

namespace earnest::simt {

inline uint32_t shared_address(const void* address) { return emulator::shared_address(address); }
template <typename T>
uint32_t shared_address(const Shared<T>& array) {
  return emulator::shared_address(&array[0]);
}

}  // namespace earnest::simt

namespace earnest::hopper {

using simt::shared_address;
using Site = simt::emulator::Site;

struct alignas(8) Barrier {
  uint64_t state;
};

inline void init(Barrier* barrier, int arrivals) { simt::emulator::init_barrier(barrier, arrivals); }
inline void fence_init() { simt::emulator::fence_barriers(); }
inline void arrive_expecting(Barrier* barrier, int bytes, Site site = Site::current()) {
  simt::emulator::arrive(barrier, simt::emulator::cluster_rank(), bytes, site);
}
inline void arrive_at(Barrier* barrier, int rank, Site site = Site::current()) {
  simt::emulator::arrive(barrier, rank, 0, site);
}
inline void wait(Barrier* barrier, int parity, Site site = Site::current()) {
  simt::emulator::wait_for_phase(barrier, parity, site);
}

inline int cluster_rank() { return simt::emulator::cluster_rank(); }
inline void cluster_sync(Site site = Site::current()) { simt::emulator::meet_cluster("cluster_sync", site); }

// As large and as aligned as the driver's.
struct alignas(64) TensorMap {
  simt::emulator::Matrix matrix;
  char rest[128 - sizeof(simt::emulator::Matrix)];
};
inline Status tensor_map(const char* op, const void* data, int64_t inner, int64_t outer, int64_t pitch,
                         TensorMap* map) {
  map->matrix = {static_cast<const char*>(data), inner, outer, 2 * pitch};
  return simt::emulator::check_matrix(op, map->matrix);
}
inline void load_box_for(uint16_t mask, void* to, const TensorMap& matrix, int inner, int outer,
                         Barrier* barrier, Site site = Site::current()) {
  simt::emulator::bring_box(mask, to, matrix.matrix, inner, outer, barrier, site);
}
inline void load_box(void* to, const TensorMap& matrix, int inner, int outer, Barrier* barrier,
                     Site site = Site::current()) {
  simt::emulator::bring_box(1u << cluster_rank(), to, matrix.matrix, inner, outer, barrier, site);
}
inline void fence_shared() { simt::emulator::fence_shared(); }

inline void meet(int barrier, int threads, Site site = Site::current()) {
  simt::emulator::meet_some(barrier, threads, false, true, site);
}
inline bool meet_or(int barrier, int threads, bool vote, Site site = Site::current()) {
  return simt::emulator::meet_some(barrier, threads, vote, true, site);
}
inline void pass(int barrier, int threads, Site site = Site::current()) {
  simt::emulator::meet_some(barrier, threads, false, false, site);
}

template <int kRegisters>
void take_registers() {
  simt::emulator::change_registers(kRegisters, true);
}
template <int kRegisters>
void leave_registers() {
  simt::emulator::change_registers(kRegisters, false);
}

}  // namespace earnest::hopper
