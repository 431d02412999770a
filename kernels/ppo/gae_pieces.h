// SPDX-License-Identifier: Apache-2.0
// How GAE on a GPU cuts sequences into pieces of work. A piece is one warp's, counted from the END of its
// sequence, so that the order of sums depends on nothing but the place in the sequence.
//
// Pieces stand in slots: those of sequence s in slots begin(s) / length + s onwards. That is always room
// enough, since ceil((e - b) / n) <= floor(e / n) - floor(b / n) + 1, and a slot's sequence is found by
// bisection of cu_seqlens alone: no table, no pass over the sequences. A slot may stay empty.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/host_device.h"

namespace earnest::ppo::gae_pieces {

constexpr int kWarps = 8;  // of a block: as many slots

template <typename T>
constexpr int kTokensOfLane = 64 / sizeof(T);
template <typename T>
constexpr int kPieceTokens = 32 * kTokensOfLane<T>;  // the most that a piece has

template <typename T>
EARNEST_HOST_DEVICE constexpr int64_t first_slot(int64_t begin, int64_t sequence) {
  return begin / kPieceTokens<T> + sequence;
}
template <typename T>
constexpr int64_t num_slots(int64_t tokens, int64_t sequences) {
  return first_slot<T>(tokens, sequences);
}
constexpr int64_t num_blocks(int64_t slots) { return (slots + kWarps - 1) / kWarps; }

// The workspace: what a slot tells those after it, and who comes next.
struct Map {  // u -> a u + b, of a piece's tokens together
  double a, b;
};
struct Workspace {
  Map* maps;         // [slots]
  double* carries;   // [slots] u behind the piece
  uint32_t* states;  // [slots], then the ticket: all of them 0 at the start
};
constexpr uint32_t kNothing = 0, kHasMap = 1, kHasCarry = 2;

constexpr size_t workspace_bytes(int64_t slots) {
  return static_cast<size_t>(slots) * (sizeof(Map) + sizeof(double) + sizeof(uint32_t)) + sizeof(uint32_t);
}
inline Workspace workspace_at(void* memory, int64_t slots) {
  auto* maps = static_cast<Map*>(memory);
  auto* carries = reinterpret_cast<double*>(maps + slots);
  return {maps, carries, reinterpret_cast<uint32_t*>(carries + slots)};
}

}  // namespace earnest::ppo::gae_pieces

// How gae numbers what can be wrong (kernels/common/device_fault.h).
namespace earnest::ppo::gae_faults {
constexpr int kReward = 0, kValue = 1, kLostReward = 2, kBounds = 3;
}
