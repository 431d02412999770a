// SPDX-License-Identifier: Apache-2.0
// What a warp of GAE takes of its window at a time: whole pieces, from the last in the window on, as long as
// their chunks fit into 32 lanes. Lane 0 has the chunk at the end of the first of them.
#pragma once

#include "kernels/common/simt.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/gae_pieces.h"

namespace earnest::ppo {
namespace {

struct Round {
  // The lane's chunk: how many tokens (0 if it has none), and of the window so many stand after it (fewer
  // than two pieces have), times 32.
  unsigned chunk;
  int place;  // chunks of the same piece after it: in the first piece, and only there, the lane's number
  // The first piece; only that one may wait for others, or others for it. Tokens are fewer than 2^31.
  int number;
  bool more;
};

// The largest s with cu_seqlens[s] <= token, if 0 <= token. A warp tries 32 places at once.
template <typename T>
__device__ int64_t sequence_of(const GaeParams<T>& p, int64_t token) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t low = 0, high = p.sequences;  // s is in [low, high)
  while (high - low > 1) {
    const int64_t step = (high - low + 31) / 32, mine = low + step * lane;
    const bool before = mine < high && p.cu_seqlens[mine] <= token;
    const int64_t found = __popc(__ballot_sync(simt::kFullWarp, before)) - 1;  // -1 if cu_seqlens is wrong
    low = found > 0 ? low + step * found : low;
    high = low + step < high ? low + step : high;
  }
  return low;
}

// The last sequence that may have a piece in the window; -1 if there is none.
template <typename T>
__device__ int64_t last_sequence(const GaeParams<T>& p, int64_t window) {
  const int64_t end = (window + 1) * gae_pieces::kPieceTokens<T>;
  const int64_t token = (end < p.tokens ? end : p.tokens) - 1;
  return token < 0 ? -1 : sequence_of(p, token);
}

// Lane by lane the sequences from *top down; moves *top past those that the round takes, and below 0 if there
// are no more in the window.
template <typename T>
__device__ Round next_round(const GaeParams<T>& p, int64_t window, int64_t* top) {
  using simt::kFullWarp;
  constexpr int kCount = gae_pieces::kTokensOfLane<T>, kLength = gae_pieces::kPieceTokens<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t s = *top - lane;
  const int64_t begin = s >= 0 ? p.cu_seqlens[s] : 0, end = s >= 0 ? p.cu_seqlens[s + 1] : 0;
  gae_pieces::Piece piece;
  if (begin >= 0 && end <= p.tokens) piece = gae_pieces::piece_in<T>(begin, end, window);
  const int chunks = static_cast<int>(piece.end - piece.begin + kCount - 1) / kCount;
  int until = chunks;  // of the sequences down to the lane's
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kFullWarp, until, step);
    if (lane >= step) until += other;
  }
  const int taken = __popc(__ballot_sync(kFullWarp, until <= 32));
  const int total = __shfl_sync(kFullWarp, until, taken - 1);

  int owner = 0;  // the lane that has looked at the sequence of this lane's chunk
#pragma unroll
  for (int step = 16; step >= 1; step /= 2)
    if (__shfl_sync(kFullWarp, until, owner + step - 1) <= lane) owner += step;
  const int first = __shfl_sync(kFullWarp, owner, 0);
  const int piece_begin = __shfl_sync(kFullWarp, static_cast<int>(piece.begin), owner);
  const int piece_end = __shfl_sync(kFullWarp, static_cast<int>(piece.end), owner);
  Round round = {};
  round.place = lane - __shfl_sync(kFullWarp, until - chunks, owner);
  round.number = __shfl_sync(kFullWarp, static_cast<int>(piece.number), first);
  round.more = __shfl_sync(kFullWarp, static_cast<int>(piece.more), first) != 0;
  const int after_last = piece_end - kCount * round.place, left = after_last - piece_begin;
  if (lane < total) {
    const int behind = static_cast<int>((window + 1) * kLength - after_last);
    round.chunk = static_cast<unsigned>(behind * 32 + (left < kCount ? left : kCount));
  } else {
    round.place = 0;
  }

  // Ends fall from lane to lane: if the next one, or else the last that was looked at, lies before the
  // window, so do all that follow.
  const bool within = s >= 0 && end > window * kLength;
  const int goes_on = __shfl_sync(kFullWarp, static_cast<int>(within), taken < 32 ? taken : 31);
  const int64_t begin_of_last = __shfl_sync(kFullWarp, begin, taken - 1);
  *top = goes_on ? *top - taken : -1;
  if (total == 0 && *top >= 0 && begin_of_last > 0) {  // all of them empty, and maybe many more
    const int64_t found = sequence_of(p, begin_of_last - 1);
    *top = found < *top ? found : *top;
  }
  return round;
}

}  // namespace
}  // namespace earnest::ppo
