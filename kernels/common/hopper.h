// SPDX-License-Identifier: Apache-2.0
// Hopper's own instructions (sm_90a): barriers in shared memory, copies by TMA, clusters of blocks, registers
// that change hands; hopper_products.h has the products by a warpgroup. In PTX for nvcc, and with the same
// meaning in the emulator, where what goes on beside the threads happens as early or as late as the PTX ISA
// allows. Names of the PTX ISA stand in hopper_nvcc.h.
//
// Barriers. A barrier's phase ends when as many have arrived as it was made for and all bytes it was told of
// are there. Phases alternate in parity, from 0. wait(parity) returns once the phase of that parity has
// ended: for a new barrier, parity 1 is that of the phase before the first, so it returns at once.
//   Barrier                            8 bytes of shared memory
//   init(barrier, arrivals)            by one thread
//   fence_init()                       by it, before others of the cluster or TMA see its barriers
//   arrive_expecting(barrier, bytes)   arrives, and tells of bytes that TMA will count
//   arrive_at(barrier, rank)           at the same barrier of the cluster's block `rank`, or of its own
//   wait(barrier, parity)
//
// Clusters, of simt::launch_clusters.
//   cluster_rank()                     of the caller's block
//   cluster_sync()                     all threads of all blocks of the cluster meet
//
// Copies by TMA of one box (hopper_layout.h) of a matrix: (inner, outer) is its first number, inner along the
// lines in memory. What lies outside the matrix is 0. All bytes of the box, those too, are counted at
// `barrier`.
//   TensorMap                          a matrix for TMA; a kernel takes it as const __grid_constant__
//   tensor_map(op, data, inner, outer, pitch, map)   on the host; a row-major matrix [outer, inner] of 16-bit
//                                      numbers; the address and `pitch` (numbers from row to row) are
//                                      multiples of 16 bytes
//   load_box(to, matrix, inner, outer, barrier)      by one thread
//   load_box_for(mask, to, ...)        into all blocks of the cluster in `mask`, at the same place of each,
//                                      counted at the same barrier of each
//   fence_shared()                     what the caller wrote to shared memory is seen by TMA and products,
//                                      after a barrier
//
// The block's barriers 1 to 15 (0 is that of __syncthreads), where `threads` of it meet, whole warps.
//   meet(barrier, threads)             meet_or(barrier, threads, vote): whether any votes
//   pass(barrier, threads)             counts as there, and goes on
//
//   take_registers<n>(), leave_registers<n>()   a whole warpgroup: from now on n registers a thread
#pragma once

#include "kernels/common/hopper_layout.h"
#include "kernels/common/mma.h"
#include "kernels/common/status.h"

#if defined(EARNEST_EMULATED)
#include "kernels/common/hopper_builtins.h"
#else
#include "kernels/common/hopper_nvcc.h"
#endif
