// SPDX-License-Identifier: Apache-2.0
// Products by a warpgroup (wgmma), four warps from a multiple of four, of bfloat16 and float16 (T) summed in
// float32. Sums and left operands in registers lie as mma_16x8x16 (mma.h) lays them out, by 8 columns: warp w
// holds rows 16 w to 16 w + 15. Operands in shared memory are boxes of hopper_layout.h, named by descriptors.
//
//   multiply_64x64x16(d, a, b, T{})         d [64, 64] += a [64, 16] b [64, 16]^T, both as they are
//   multiply_64x256x16<left, right>(d, a, b)   the same of b [256, 16], bfloat16; whether they lie transposed
//   multiply_by(d, a, b, T{})               d [64, 64 or 128] += a [64, 16] b [16, 64 or 128]: a in
//                                           registers, b transposed
//   multiply_rows(d, a, b, T{}, adds)       d [64, 64 or 128] += a [64, 16] b [64 or 128, 16]^T: a in
//                                           registers, b as it is; what d was counts as 0 unless `adds`
//
// Registers of a product under way belong to it: nobody reads or writes them before the wait. What it reads
// in shared memory may be read at any time until then.
//   begin_products()    the warpgroup's registers are as written: before the first product that uses them
//   close_products()    puts all products since the last one into a group
//   wait_products<n>()  until at most the last n groups of the calling warp are under way; says nothing of
//                       other warps
//   settle(sums)        tells nvcc that the sums have changed: stands between the wait and their use
//   keep(operands)      tells it that registers which products read are nobody else's before: stands behind
//                       the wait
#pragma once

#include "kernels/common/bfloat16.h"
#include "kernels/common/float16.h"
#include "kernels/common/hopper.h"

#if defined(EARNEST_EMULATED)
#include "kernels/common/hopper_products_builtins.h"
#else
#include "kernels/common/hopper_products_nvcc.h"
#endif
