// SPDX-License-Identifier: Apache-2.0
// Generalised advantage estimation, one warp a window of 32 x 16 (double: 8) tokens (gae_pieces.h).
//
// With u of gae_tile.h, a trainable token is the map u -> c u + b, another one the identity. A lane joins the
// maps of up to 16 tokens of one piece, counted from its end: its chunk. Lanes join theirs in a scan that
// ends where the piece does; a chunk's number depends on its place in the piece alone, wherever in the warp
// that stands. So pieces of several short sequences go through a warp side by side, and the shortest through
// a lane one after another (gae_round.h).
//
// What a piece needs of those after it in the sequence is one number: u behind it. A piece that is not the
// sequence's first publishes its map, the last of a group of 32 that of the group, the last of 32 groups u
// before them all; and a piece waits for those after it in its group, the groups after its own among the 32,
// and u behind these (the tree of a scan of 32 ways; blocks that wait for what others publish as in Merrill
// and Garland's decoupled look-back of 2016, but whatever the order in which they come to know, the sums are
// the same). Tickets, not block numbers, give out windows, the last one first, so that whoever is waited for
// has begun.
#include <cmath>

#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/ppo/gae_round.h"
#include "kernels/ppo/ppo_cuda.h"

namespace earnest::ppo {
namespace {

using namespace gae_pieces;
using simt::kFullWarp;

template <typename T>
__device__ void check_bounds(const GaeParams<T>& p) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i <= p.sequences;
       i += threads) {
    const bool good =
        (i > 0 || p.cu_seqlens[0] == 0) &&
        (i < p.sequences ? p.cu_seqlens[i] <= p.cu_seqlens[i + 1] : p.cu_seqlens[i] == p.tokens);
    if (!good) record_fault(p.fault, {FaultOp::kGae, i, gae_faults::kBounds});
  }
}

// A chunk's tokens stand in shared memory side by side, with a gap after them. A row of 32 lanes loads or
// stores as many chunks as 32 tokens have at most.
template <typename T>
constexpr int kRowPlaces = 32 + 32 / kTokensOfLane<T>;
template <typename T>
constexpr int kPlaces = kTokensOfLane<T> * kRowPlaces<T>;

// Of row i this lane loads the token that so many of the window's come after; -1 if there is none.
template <typename T>
__device__ int behind_row(const Round& round, int i) {
  constexpr int kCount = kTokensOfLane<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, place = lane % kCount;
  const Chunk chunk = {__shfl_sync(kFullWarp, round.chunk.bits, i * (32 / kCount) + lane / kCount)};
  return place < chunk.count() ? chunk.behind() + place : -1;
}

// Names what is wrong in a chunk, once something in the warp is.
template <typename T>
__device__ void name_faults(const GaeParams<T>& p, int64_t window, const Round& round) {
  const int64_t end = (window + 1) * kPieceTokens<T> - round.chunk.behind();
  for (int64_t t = end - round.chunk.count(); t < end; ++t) {
    if (p.trainable[t]) {
      if (!std::isfinite(p.rewards[t])) record_fault(p.fault, {FaultOp::kGae, t, gae_faults::kReward});
      if (!std::isfinite(p.values[t])) record_fault(p.fault, {FaultOp::kGae, t, gae_faults::kValue});
    } else if (p.refuse_masked_rewards && !(p.rewards[t] == T(0))) {
      record_fault(p.fault, {FaultOp::kGae, t, gae_faults::kLostReward});
    }
  }
}

// Brings the chunks into shared memory, 0 where not trainable; returns the lane's flags, one bit a token.
template <typename T>
__device__ unsigned load_round(const GaeParams<T>& p, int64_t window, const Round& round,
                               simt::Shared<T> rewards, simt::Shared<T> values) {
  constexpr int kRows = kTokensOfLane<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t last = (window + 1) * kPieceTokens<T> - 1;
  T reward[kRows], value[kRows];
  bool chosen[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {  // all loads are under way before the first is waited for
    const int behind = behind_row<T>(round, i);
    reward[i] = behind >= 0 ? p.rewards[last - behind] : T(0);
    value[i] = behind >= 0 ? p.values[last - behind] : T(0);
    chosen[i] = behind >= 0 && p.trainable[last - behind] != 0;
  }
  unsigned row_flags = 0;  // of row `lane`
  T poison = T(0);         // or not a number, once an entry is not finite
  bool lost = false;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    lost |= !chosen[i] && !(reward[i] == T(0));
    reward[i] = chosen[i] ? reward[i] : T(0);
    value[i] = chosen[i] ? value[i] : T(0);
    poison += reward[i] * T(0) + value[i] * T(0);
    rewards[i * kRowPlaces<T> + lane + lane / kRows] = reward[i];
    values[i * kRowPlaces<T> + lane + lane / kRows] = value[i];
    const unsigned flags = __ballot_sync(kFullWarp, chosen[i]);
    if (lane == i) row_flags = flags;
  }
  const bool wrong = !(poison == T(0)) || (lost && p.refuse_masked_rewards);
  if (__any_sync(kFullWarp, wrong)) name_faults(p, window, round);
  __syncwarp();
  return __shfl_sync(kFullWarp, row_flags, lane * kRows / 32) >> (lane * kRows % 32);
}

template <typename T>
__device__ void store_round(const GaeParams<T>& p, int64_t window, const Round& round,
                            simt::Shared<T> advantages, simt::Shared<T> returns) {
  constexpr int kRows = kTokensOfLane<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t last = (window + 1) * kPieceTokens<T> - 1;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int behind = behind_row<T>(round, i);
    if (behind < 0) continue;
    p.advantages[last - behind] = advantages[i * kRowPlaces<T> + lane + lane / kRows];
    p.returns[last - behind] = returns[i * kRowPlaces<T> + lane + lane / kRows];
  }
  __syncwarp();  // the next round loads over them
}

template <typename T>
__device__ double surplus(const GaeParams<T>& p, double reward, double value) {
  return fma(1.0 - p.lam, value, p.lam * reward);
}

__device__ inline double apply(const Map& map, double u) { return fma(map.a, u, map.b); }
__device__ inline Map after(const Map& map, const Map& before) {
  return {map.a * before.a, fma(map.a, before.b, map.b)};
}
__device__ inline Map from_lane(const Map& map, int lane) {
  return {__shfl_sync(kFullWarp, map.a, lane), __shfl_sync(kFullWarp, map.b, lane)};
}

// The map of this lane and those before it that belong together with it: `place` is how many there are.
__device__ inline Map scanned(Map map, int place) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Map other = {__shfl_up_sync(kFullWarp, map.a, step), __shfl_up_sync(kFullWarp, map.b, step)};
    if (place >= step) map = after(map, other);
  }
  return map;
}

// The joint map of `count` (1 to 31) windows, the first and then every `apart`-th before it, once all of them
// have published it.
__device__ inline Map published(const Workspace& w, const Map* maps, uint32_t state, int64_t first, int apart,
                                int count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool exists = lane < count;
  const int64_t mine = first - static_cast<int64_t>(apart) * lane;
  while (!__all_sync(kFullWarp, !exists || simt::load_acquire(&w.states[mine]) >= state)) simt::pause();
  return from_lane(scanned(exists ? maps[mine] : Map{1.0, 0.0}, lane), count - 1);
}

__device__ inline void tell(const Workspace& w, int64_t window, uint32_t state) {
  simt::store_release(&w.states[window], state);
}

// u behind the round's first piece, whose map is of_piece. Tells what others wait for as soon as it is known.
__device__ inline double carry_behind(const Workspace& w, int64_t window, const Round& round,
                                      const Map& of_piece) {
  const bool tells = static_cast<int>(threadIdx.x) % 32 == 0 && round.more;
  if (tells) {
    w.pieces[window] = of_piece;
    tell(w, window, kHasPiece);
  }
  const int number = round.number, in_group = number % kGroup, group = number / kGroup % kGroup;
  if (number == 0) return 0.0;
  const bool ends_group = tells && in_group == kGroup - 1;
  Map pieces{1.0, 0.0}, groups{1.0, 0.0};
  if (in_group > 0) pieces = published(w, w.pieces, kHasPiece, window + in_group, 1, in_group);
  if (ends_group) {
    w.groups[window] = after(of_piece, pieces);
    tell(w, window, kHasGroup);
  }
  if (group > 0) {
    const int64_t nearest_end =
        window + number % kStretch - (kGroup - 1);  // of the first group in the stretch
    groups = published(w, w.groups, kHasGroup, nearest_end, kGroup, group);
  }
  double carry = 0.0;
  if (number >= kStretch) {
    const int64_t before = window + number % kStretch + 1;
    while (simt::load_acquire(&w.states[before]) < kHasCarry) simt::pause();
    carry = w.carries[before];
  }
  if (ends_group && group == kGroup - 1) {
    w.carries[window] = apply(after(after(of_piece, pieces), groups), carry);
    tell(w, window, kHasCarry);
  }
  return apply(pieces, apply(groups, carry));
}

template <typename T>
__device__ void scan_round(const GaeParams<T>& p, const Workspace& w, int64_t window, const Round& round,
                           simt::Shared<T> rewards, simt::Shared<T> values) {
  constexpr int kCount = kTokensOfLane<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double c = p.gamma * p.lam;
  const unsigned flags = load_round(p, window, round, rewards, values);
  Map map{1.0, 0.0};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {  // where nothing is trainable, 0 stands: the map is the identity
    const int place = lane * (kCount + 1) + i;
    const double decay = flags >> i & 1u ? c : 1.0;
    map = after({decay, surplus(p, rewards[place], values[place])}, map);
  }
  const Map until = scanned(map, round.place);
  double behind = 0.0;
  if (round.more || round.number > 0) {
    const double carry = carry_behind(w, window, round, from_lane(until, 31));
    behind = round.place == lane ? carry : 0.0;
  }

  const double a = __shfl_up_sync(kFullWarp, until.a, 1), b = __shfl_up_sync(kFullWarp, until.b, 1);
  double u = round.place == 0 ? behind : fma(a, behind, b);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int place = lane * (kCount + 1) + i;
    const bool chosen = flags >> i & 1u;
    const double reward = rewards[place], value = values[place];
    u = round.chunk.ends_at(i) ? 0.0 : u;
    const double advantage = fma(p.gamma, u, reward - value);
    u = fma(chosen ? c : 1.0, u, surplus(p, reward, value));
    rewards[place] = chosen ? static_cast<T>(advantage) : T(0);
    values[place] = chosen ? static_cast<T>(advantage + value) : T(0);
  }
  store_round(p, window, round, rewards, values);
}

template <typename T>
__device__ void scan_window(const GaeParams<T>& p, const Workspace& w, int64_t window,
                            simt::Shared<T> rewards, simt::Shared<T> values) {
  int64_t top = last_sequence(p, window);
  while (top >= 0) {
    const Round round = next_round(p, window, &top);
    if (__any_sync(kFullWarp, round.chunk.bits != 0)) scan_round(p, w, window, round, rewards, values);
  }
  // Nobody asks for more, but where cu_seqlens is not as it must be: then nobody waits for ever.
  if (threadIdx.x % 32 != 0) return;
  const uint32_t told = simt::load_acquire(&w.states[window]);
  if (told < kHasPiece) w.pieces[window] = {1.0, 0.0};
  if (told < kHasGroup) w.groups[window] = {1.0, 0.0};
  if (told < kHasCarry) w.carries[window] = 0.0;
  tell(w, window, kHasCarry);
}

template <typename T>
__global__ void __launch_bounds__(32 * kWarps) scan_pieces(GaeParams<T> p, Workspace w, int64_t windows) {
  EARNEST_SHARED(uint32_t, ticket, 1);
  EARNEST_SHARED(T, rewards, kWarps * kPlaces<T>);
  EARNEST_SHARED(T, values, kWarps * kPlaces<T>);
  check_bounds(p);
  if (threadIdx.x == 0) ticket[0] = atomicAdd(&w.states[windows], 1u);
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t window = windows - 1 - static_cast<int64_t>(ticket[0]) * kWarps - warp;
  if (window >= 0) scan_window(p, w, window, rewards + warp * kPlaces<T>, values + warp * kPlaces<T>);
}

}  // namespace

template <typename T>
Status gae_cuda(const GaeParams<T>& p) {
  cuda::Properties device;
  if (Status status = cuda::properties("gae", &device); !status.ok()) return status;
  if (p.fault == nullptr) return invalid_argument("gae", "fault", "a word on the device", "none");
  if (p.sequences == 0 && p.tokens > 0)
    return invalid_argument("gae", "cu_seqlens",
                            std::to_string(p.tokens) + " (the number of tokens) at the end", "0");
  if (p.sequences == 0) return {};
  if (p.workspace == nullptr) return invalid_argument("gae", "workspace", "memory on the device", "none");
  const int64_t windows = num_windows<T>(p.tokens);
  const Workspace w = workspace_at(p.workspace, windows);
  const size_t state_bytes = static_cast<size_t>(windows + 1) * sizeof(uint32_t);
  if (Status status = cuda::fill("gae", w.states, 0, state_bytes, p.stream); !status.ok()) return status;
  return simt::launch({"gae", "scan_pieces"}, scan_pieces<T>, static_cast<unsigned>(num_blocks(windows)),
                      32 * kWarps, 0, p.stream, p, w, windows);
}

template Status gae_cuda<float>(const GaeParams<float>&);
template Status gae_cuda<double>(const GaeParams<double>&);

}  // namespace earnest::ppo
