// SPDX-License-Identifier: Apache-2.0
// How GAE on a GPU cuts sequences into pieces of work, so that the order of sums depends on nothing but the
// place in the sequence. Pieces have a fixed length and are counted from the END of their sequence, and so
// are groups of 32 pieces and stretches of 32 groups.
//
// A warp takes one window of the batch: the pieces whose last token lies in it. As a window is as long as a
// piece, a sequence has at most one piece in each, that of number n in the n-th window before that of its
// last. So a window is found by nothing but its number, long sequences fill windows with one piece each, and
// short ones share them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest::ppo::gae_pieces {

constexpr int kWarps = 8;   // of a block: as many windows
constexpr int kGroup = 32;  // pieces
constexpr int kStretch = kGroup * kGroup;

template <typename T>
constexpr int kTokensOfLane = 64 / sizeof(T);
template <typename T>
constexpr int kPieceTokens = 32 * kTokensOfLane<T>;  // the most that a piece has

template <typename T>
constexpr int64_t num_windows(int64_t tokens) {  // at least one, which looks at cu_seqlens
  return tokens > 0 ? (tokens + kPieceTokens<T> - 1) / kPieceTokens<T> : 1;
}
constexpr int64_t num_blocks(int64_t windows) { return (windows + kWarps - 1) / kWarps; }

struct Piece {
  int64_t begin = 0, end = 0;  // tokens
  int64_t number = 0;          // 0 is the last of its sequence
  bool more = false;           // the sequence goes on before it; then it has its full length
};

// Of the sequence [begin, end), begin >= 0, in this window; empty if none is.
template <typename T>
EARNEST_HOST_DEVICE constexpr Piece piece_in(int64_t begin, int64_t end, int64_t window) {
  constexpr int64_t kLength = kPieceTokens<T>;
  const int64_t number = (end - 1) / kLength - window, last = end - number * kLength;
  if (end <= begin || number < 0 || last <= begin) return {};
  const bool more = last - kLength > begin;
  return {more ? last - kLength : begin, last, number, more};
}

// The workspace: what a window's warp tells those of windows before it.
struct Map {  // u -> a u + b, of some tokens together
  double a, b;
};
struct Workspace {
  Map* pieces;       // [windows] of the piece that goes on before the window
  Map* groups;       // [windows] of the group that ends with this piece
  double* carries;   // [windows] u before the stretch that ends with this piece
  uint32_t* states;  // [windows], then the ticket: all of them 0 at the start
};
constexpr uint32_t kNothing = 0, kHasPiece = 1, kHasGroup = 2, kHasCarry = 3;  // and what comes before

constexpr size_t workspace_bytes(int64_t windows) {
  return static_cast<size_t>(windows) * (2 * sizeof(Map) + sizeof(double) + sizeof(uint32_t)) +
         sizeof(uint32_t);
}
inline Workspace workspace_at(void* memory, int64_t windows) {
  auto* pieces = static_cast<Map*>(memory);
  auto* carries = reinterpret_cast<double*>(pieces + 2 * windows);
  return {pieces, pieces + windows, carries, reinterpret_cast<uint32_t*>(carries + windows)};
}

}  // namespace earnest::ppo::gae_pieces

// How gae numbers what can be wrong (kernels/common/device_fault.h).
namespace earnest::ppo::gae_faults {
constexpr int kReward = 0, kValue = 1, kLostReward = 2, kBounds = 3;
}
