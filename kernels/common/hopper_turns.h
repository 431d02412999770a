// SPDX-License-Identifier: Apache-2.0
// More of Hopper, for blocks that add to the same memory one after another: copies of bytes in order of
// addresses by TMA, sums of floats by it, and turns.
//
// A *turn* is a count in global memory of how many have added. Who is to be the n-th waits for n, adds, and
// passes it on. The sum of a number is then one addition after another in the order of turns, the same each
// time: nobody else adds meanwhile. Bytes: a multiple of 16, on 16.
//   load_bytes(to, from, bytes, barrier)   into shared memory, counted at `barrier`; by one thread
//   store_bytes(to, from, bytes)           out of it
//   add_floats(to, from, bytes)            out of it, added float by float to what is there
//   close_copies()                         closes the calling thread's group of those two
//   wait_read()                            until its groups have read shared memory
//   wait_written()                         until others can see what they have written
//   wait_turn(turns, turn)                 until at least so many have come: whoever comes more often than
//                                          expected makes nobody wait for ever
//   pass_turn(turns)
//   multiply_transposed(d, a, b, T{})      d [64, 64] += a [64, 16] b [16, 64], both transposed, by
//                                          descriptors
#pragma once

#include "kernels/common/hopper_products.h"

#if defined(EARNEST_EMULATED)
#include "kernels/common/hopper_turns_builtins.h"
#else
#include "kernels/common/hopper_turns_nvcc.h"
#endif
