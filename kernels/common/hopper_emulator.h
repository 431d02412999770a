// SPDX-License-Identifier: Apache-2.0
// What hopper.h and hopper_products.h mean in the emulator. Boxes that TMA brings and products happen beside
// the threads: at once, or as late as the PTX ISA allows, or in between, as is drawn for each launch. A late
// box lands when nobody else goes on; a late product reads its operands when a wait covers it. Between its
// issue and the wait a product's sums hold NaN, and nobody may touch them.
//
// Boxes and products see shared memory through a proxy of their own, which the threads' writes reach by
// fence_shared. Here any thread's fence carries over all that has been written in the block: a fence that is
// wholly missing is found, one that a single thread leaves out is not.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/common/simt_emulator.h"
#include "kernels/common/status.h"

namespace earnest::simt {

// When boxes and products happen; for tests. kDrawn: each launch draws one of the others.
enum class Arrival { kDrawn, kEarly, kMixed, kLate };
void set_arrival(Arrival arrival);

// Since the last call: products that a warpgroup asked for while another one of its block was in the midst of
// its own, with a group open or warps behind. None where warpgroups take turns.
int64_t take_products_in_between();

namespace emulator {

uint32_t shared_address(const void* address);

// ---- barriers in shared memory ----
void init_barrier(void* barrier, int arrivals);
void fence_barriers();
void arrive(void* barrier, int rank, int bytes, const Site& site);
void wait_for_phase(void* barrier, int parity, const Site& site);

// ---- copies ----
struct Matrix {
  const char* data;
  int64_t inner, outer, pitch_bytes;  // of numbers of two bytes
};
Status check_matrix(const char* op, const Matrix& matrix);
void bring_box(unsigned mask, void* to, const Matrix& matrix, int inner, int outer, void* barrier,
               const Site& site);
void fence_shared();

// ---- barriers of the block ----
bool meet_some(int barrier, int threads, bool vote, bool waits, const Site& site);

// ---- registers ----
void change_registers(int registers, bool takes);

// ---- products: what one warp of the warpgroup computes, 16 rows ----
struct Sums {
  float* d;
  int count;  // numbers of a lane: J * 4
};
struct LeftOperand {
  const uint32_t* registers;  // or null, and
  uint64_t descriptor;
  bool transposed;
};
struct RightOperand {
  uint64_t descriptor;
  bool transposed;
};
using Widen = float (*)(uint16_t);
void multiply(const char* name, const Sums& sums, const LeftOperand& left, const RightOperand& right,
              Widen widen, const Site& site);
void begin_products(const Site& site);
void close_products(const Site& site);
void wait_for_products(int groups_left, const Site& site);

}  // namespace emulator
}  // namespace earnest::simt
