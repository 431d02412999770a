// SPDX-License-Identifier: Apache-2.0
// What a warp of GAE takes of its window at a time: whole pieces, from the last in the window on, as long as
// their chunks fit into 32 lanes. Lane 0 has the chunk at the end of the first of them. Where sequences are
// so short that a chunk has room for several, a lane takes as many, one after another: the steps of each are
// those that it takes alone.
#pragma once

#include "kernels/common/simt.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/gae_pieces.h"

namespace earnest::ppo {
namespace {

// A lane's chunk, one number that lanes exchange; 0: it has none.
struct Chunk {
  unsigned bits;
  __device__ int count() const { return static_cast<int>(bits >> 16 & 31u); }  // tokens
  // So many of the window stand after it: fewer than two pieces have.
  __device__ int behind() const { return static_cast<int>(bits >> 21); }
  // Of several sequences in a chunk: those of its tokens, counted from its end, that end one.
  __device__ bool ends_at(int i) const { return bits >> i & 1u; }
};
__device__ inline Chunk chunk_of(int behind, int count, unsigned ends) {
  return {static_cast<unsigned>(behind) << 21 | static_cast<unsigned>(count) << 16 | ends};
}

struct Round {
  Chunk chunk;
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

// Lane by lane `each` sequences from top down, all of which must be whole and fit into one chunk together.
// False, for all lanes, if they do not; `last`: whether there are no more in the window.
template <typename T>
__device__ bool short_round(const GaeParams<T>& p, int64_t window, int64_t top, int each, Round* round,
                            bool* last) {
  constexpr int kCount = gae_pieces::kTokensOfLane<T>, kLength = gae_pieces::kPieceTokens<T>;
  const int64_t window_begin = window * kLength, first = top - each * (static_cast<int>(threadIdx.x) % 32);
  const int most = static_cast<int>(p.tokens - window_begin < kLength ? p.tokens - window_begin : kLength);
  const auto bound = [&](int64_t s) {  // of the window's tokens; those before it are less than 0
    return static_cast<int>(p.cu_seqlens[s] - window_begin);
  };
  int begin = first >= 0 ? bound(first + 1) : 0, chunk_begin = 0, chunk_end = 0;
  bool fit = true, within = false;
  unsigned ends = 0;
#pragma unroll 1
  for (int i = 0; i < each; ++i) {
    const int end = begin;
    within = first >= i && end > 0;
    if (!within) break;
    begin = bound(first - i);
    if (end == begin) continue;
    if (ends == 0) chunk_begin = chunk_end = end;
    fit = begin < end && (begin >= 0 || window > 0) && end <= most && begin >= chunk_end - kCount;
    if (!fit) break;
    ends |= 1u << (chunk_end - end);
    chunk_begin = begin;
  }
  if (!__all_sync(simt::kFullWarp, fit)) return false;
  *round = {};
  if (ends != 0) round->chunk = chunk_of(kLength - chunk_end, chunk_end - chunk_begin, ends);
  *last = __shfl_sync(simt::kFullWarp, static_cast<int>(within), 31) == 0;
  return true;
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
  const int length = static_cast<int>(piece.end - piece.begin), chunks = (length + kCount - 1) / kCount;
  int until = chunks;  // of the sequences down to the lane's
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kFullWarp, until, step);
    if (lane >= step) until += other;
  }
  const int taken = __popc(__ballot_sync(kFullWarp, until <= 32));
  const int total = __shfl_sync(kFullWarp, until, taken - 1);
  Round round = {};

  int each = 1;  // so many as long as any of these would fit
  while (each < kCount && __all_sync(kFullWarp, 2 * each * length <= kCount)) each *= 2;
  bool last;
  if (each > 1 && total > 1 && short_round(p, window, *top, each, &round, &last)) {
    *top = last ? -1 : *top - 32 * each;
    return round;
  }

  int owner = 0;  // the lane that has looked at the sequence of this lane's chunk
#pragma unroll
  for (int step = 16; step >= 1; step /= 2)
    if (__shfl_sync(kFullWarp, until, owner + step - 1) <= lane) owner += step;
  const int first = __shfl_sync(kFullWarp, owner, 0);
  const int piece_begin = __shfl_sync(kFullWarp, static_cast<int>(piece.begin), owner);
  const int piece_end = __shfl_sync(kFullWarp, static_cast<int>(piece.end), owner);
  round.place = lane - __shfl_sync(kFullWarp, until - chunks, owner);
  round.number = __shfl_sync(kFullWarp, static_cast<int>(piece.number), first);
  round.more = __shfl_sync(kFullWarp, static_cast<int>(piece.more), first) != 0;
  const int after_last = piece_end - kCount * round.place, left = after_last - piece_begin;
  if (lane < total) {
    round.chunk =
        chunk_of(static_cast<int>((window + 1) * kLength - after_last), left < kCount ? left : kCount, 0);
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
