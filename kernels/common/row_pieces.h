// SPDX-License-Identifier: Apache-2.0
// Rows as kernels read and write them that are bound by memory: in pieces of 16 bytes, a thread a piece, or
// number by number where a row does not divide into them. Either way the same numbers go the same way, so
// that no bit depends on where an array begins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/common/bfloat16.h"
#include "kernels/common/simt.h"
#include "kernels/common/status.h"

namespace earnest::simt {

constexpr int kPieceBytes = 16;
template <typename Stored>
constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(Stored));

// Whether rows of so many numbers are whole pieces of `piece` numbers in all these arrays.
inline bool in_whole_pieces(int64_t width, int piece, std::initializer_list<const void*> arrays) {
  bool whole = width % piece == 0;
  for (const void* array : arrays) whole = whole && reinterpret_cast<uintptr_t>(array) % kPieceBytes == 0;
  return whole;
}

constexpr int kMostThreads = 256;
constexpr int kMostWarps = kMostThreads / kWarpSize;

inline int64_t pieces_of(int64_t width, int piece) { return (width + piece - 1) / piece; }

// A thread for each piece of a row, in whole warps; so the order of a row's sums follows from its width
// alone.
inline dim3 threads_for(int64_t pieces) {
  const int64_t whole = (pieces + kWarpSize - 1) / kWarpSize * kWarpSize;
  return dim3(static_cast<unsigned>(std::min<int64_t>(whole, kMostThreads)));
}

// How a thread for each piece of `rows` rows of `width` numbers is launched: so many blocks `across` a row.
struct RowLaunch {
  dim3 grid, threads;
  unsigned across;
};

// So many blocks for each row, one after another along x.
inline Status row_grid(const char* op, int64_t rows, int64_t across, dim3* grid) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  if (rows > kMost / across)
    return unsupported(op, "rows", "fewer than 2^31 blocks of work on cuda",
                       std::to_string(rows) + " of " + std::to_string(across));
  *grid = dim3(static_cast<unsigned>(rows * across));
  return {};
}
inline Status piece_launch(const char* op, int64_t rows, int64_t width, int piece, RowLaunch* launch) {
  const int64_t pieces = pieces_of(width, piece);
  launch->threads = threads_for(pieces);
  const int64_t across = (pieces + launch->threads.x - 1) / launch->threads.x;
  launch->across = static_cast<unsigned>(across);
  return row_grid(op, rows, across, &launch->grid);
}

namespace {

template <typename Stored>
struct alignas(kPieceBytes) Bytes16 {
  Stored x[kPiece<Stored>];
};

// kCount numbers from `from` on, of which the row has `left`; what it does not have is 0.
template <bool kWhole, int kCount, typename Stored>
__device__ inline void load(const Stored* from, int64_t left, float (&x)[kCount]) {
  if constexpr (kWhole) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPiece<Stored>) {
      const Bytes16<Stored> bytes = *reinterpret_cast<const Bytes16<Stored>*>(from + i);
#pragma unroll
      for (int j = 0; j < kPiece<Stored>; ++j) x[i + j] = widen(bytes.x[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = i < left ? widen(from[i]) : 0.0f;
  }
}

template <bool kWhole, int kCount, typename Stored>
__device__ inline void store(const float (&x)[kCount], int64_t left, Stored* to) {
  if constexpr (kWhole) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPiece<Stored>) {
      Bytes16<Stored> bytes;
#pragma unroll
      for (int j = 0; j < kPiece<Stored>; ++j) narrow(x[i + j], &bytes.x[j]);
      *reinterpret_cast<Bytes16<Stored>*>(to + i) = bytes;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < left) narrow(x[i], to + i);
    }
  }
}

// As it is after a round trip through the stored type.
__device__ inline float rounded(float value, const float*) { return value; }
__device__ inline float rounded(float value, const BFloat16*) {
  BFloat16 stored;
  narrow(value, &stored);
  return widen(stored);
}

// The sum over a block of whole warps, the same for all its threads and always in the same order: a tree in
// each warp, then one warp after the other. `partial`: a number for each warp.
__device__ inline float sum_of_block(float value, Shared<float> partial) {
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kFullWarp, value, lanes);
  __syncthreads();  // whoever still reads the sums before
  if (thread % kWarpSize == 0) partial[thread / kWarpSize] = value;
  __syncthreads();
  float sum = partial[0];
  for (int warp = 1; warp < warps; ++warp) sum += partial[warp];
  return sum;
}

}  // namespace
}  // namespace earnest::simt
