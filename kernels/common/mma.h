// SPDX-License-Identifier: Apache-2.0
// Tensor cores as sm_80 has them, and what feeds them: our names for PTX instructions, with the same meaning
// in the emulator, lane by lane. The whole warp calls each of the first four together. g = lane / 4, t =
// lane % 4; a register of 32 bits holds two bfloat16, the first in its low half.
//
//   mma_16x8x16(d, a, b)   d += a b, bfloat16 products summed in float32
//                          a [16, 16]: a[0] row g, columns 2t, 2t + 1; a[1] row g + 8; a[2], a[3] the same +
//                          8 columns b [16, 8]:  b[0] rows 2t, 2t + 1 of column g; b[1] rows 2t + 8, 2t + 9
//                          d [16, 8]:  d[0], d[1] row g, columns 2t, 2t + 1; d[2], d[3] row g + 8
//   mma_16x8x16_float16    the same of float16
//   ldmatrix_x4(r, row)    four 8 x 8 matrices from shared memory; lane l names row l % 8 of matrix l / 8, 16
//   aligned
//                          bytes; r[i] becomes elements 2t, 2t + 1 of row g of matrix i
//   ldmatrix_x4_trans      the same of the matrices transposed
//   multiply_bfloat16(x, y)          the products of two registers' halves, rounded; subnormal numbers count
//   multiply_float16(x, y)           the same of float16
//   copy_async_16(to, from, bytes)   16 bytes into shared memory, only the first `bytes` (0 to 16) of them
//   read and the
//                          others 0; both addresses aligned; there after copy_async_wait, for others after a
//                          barrier
//   copy_async_commit()    closes a group     copy_async_wait<n>()   until at most the last n groups are
//   under way pack_bfloat16(low, high)   two numbers rounded into a register      pack_float16   likewise
#pragma once

#include "kernels/common/simt.h"

#if defined(EARNEST_EMULATED)
#include "kernels/common/mma_builtins.h"
#else
#include "kernels/common/mma_nvcc.h"
#endif
