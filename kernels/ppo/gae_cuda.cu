// SPDX-License-Identifier: Apache-2.0
// Generalised advantage estimation, one warp a piece of up to 32 x 16 (double: 8) tokens of one sequence.
//
// With u of gae_tile.h, a trainable token is the map u -> c u + b, another one the identity. A lane joins the
// maps of its tokens one by one, lanes join theirs in a scan, and what a piece needs of those after it in the
// sequence is one number: u behind it. A piece that is not the sequence's last publishes its map at once and
// waits until a piece at most 32 further on knows its u ("decoupled look-back", Merrill and Garland 2016);
// from there the maps between are applied one after the other, always in this order, whichever piece was
// first to know. Tickets, not block numbers, give out slots, so that whoever is waited for has begun.
#include <cmath>

#include "kernels/common/cuda.h"
#include "kernels/common/record_fault.h"
#include "kernels/ppo/gae_pieces.h"
#include "kernels/ppo/ppo_cuda.h"

namespace earnest::ppo {
namespace {

using namespace gae_pieces;
using simt::kFullWarp;

struct Piece {
  int64_t begin = 0, end = 0;  // tokens
  int64_t number = 0;          // 0 is the last of its sequence
};

// The largest s with first_slot(s) <= slot. A warp tries 32 places at once.
template <typename T>
__device__ int64_t sequence_of(const GaeParams<T>& p, int64_t slot) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t low = 0, high = p.sequences;  // s is in [low, high)
  while (high - low > 1) {
    const int64_t step = (high - low + 31) / 32, mine = low + step * lane;
    const bool before = mine < high && first_slot<T>(p.cu_seqlens[mine], mine) <= slot;
    const int64_t found = __popc(__ballot_sync(kFullWarp, before)) - 1;  // a malformed cu_seqlens may say -1
    low = found > 0 ? low + step * found : low;
    high = low + step < high ? low + step : high;
  }
  return low;
}

// Empty where nothing stands in the slot, or cu_seqlens is not as it must be.
template <typename T>
__device__ Piece piece_in(const GaeParams<T>& p, int64_t slot) {
  const int64_t s = sequence_of(p, slot);
  const int64_t begin = p.cu_seqlens[s], end = p.cu_seqlens[s + 1];
  const int64_t number = slot - first_slot<T>(begin, s);
  const int64_t last = end - number * kPieceTokens<T>;
  if (begin < 0 || end > p.tokens || number < 0 || last <= begin) return {};
  return {last - kPieceTokens<T> > begin ? last - kPieceTokens<T> : begin, last, number};
}

template <typename T>
__device__ void check_bounds(const GaeParams<T>& p, int64_t i) {
  if (i > p.sequences) return;
  const bool good = (i > 0 || p.cu_seqlens[0] == 0) &&
                    (i < p.sequences ? p.cu_seqlens[i] <= p.cu_seqlens[i + 1] : p.cu_seqlens[i] == p.tokens);
  if (!good) record_fault(p.fault, {FaultOp::kGae, i, gae_faults::kBounds});
}

// A token stands in shared memory by its distance d from the end of the piece, with a gap after each lane's
// tokens: at d + d / kTokensOfLane. Of the token 32 i + lane that is 32 i and its gaps further than of the
// token `lane`.
template <typename T>
constexpr int kRowPlaces = 32 + 32 / kTokensOfLane<T>;
template <typename T>
constexpr int kPlaces = kTokensOfLane<T> * kRowPlaces<T>;

// Names what is wrong in a piece that has shown that something is.
template <typename T>
__device__ void name_faults(const GaeParams<T>& p, const Piece& piece) {
  for (int64_t t = piece.begin + threadIdx.x % 32; t < piece.end; t += 32) {
    if (p.trainable[t]) {
      if (!std::isfinite(p.rewards[t])) record_fault(p.fault, {FaultOp::kGae, t, gae_faults::kReward});
      if (!std::isfinite(p.values[t])) record_fault(p.fault, {FaultOp::kGae, t, gae_faults::kValue});
    } else if (p.refuse_masked_rewards && !(p.rewards[t] == T(0))) {
      record_fault(p.fault, {FaultOp::kGae, t, gae_faults::kLostReward});
    }
  }
}

// Brings the piece into shared memory, 0 where not trainable; returns the lane's flags, one bit a token.
template <typename T>
__device__ unsigned load_piece(const GaeParams<T>& p, const Piece& piece, simt::Shared<T> rewards,
                               simt::Shared<T> values) {
  constexpr int kRows = kTokensOfLane<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int left =
      static_cast<int>(piece.end - piece.begin) - lane;  // row i has a token of this lane if 32 i < left
  const int64_t first = piece.end - 1 - lane;
  T reward[kRows], value[kRows];
  bool chosen[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {  // all loads are under way before the first is waited for
    reward[i] = 32 * i < left ? p.rewards[first - 32 * i] : T(0);
    value[i] = 32 * i < left ? p.values[first - 32 * i] : T(0);
    chosen[i] = 32 * i < left && p.trainable[first - 32 * i] != 0;
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
  if (__any_sync(kFullWarp, wrong)) name_faults(p, piece);
  __syncwarp();
  return __shfl_sync(kFullWarp, row_flags, lane * kRows / 32) >> (lane * kRows % 32);
}

template <typename T>
__device__ double surplus(const GaeParams<T>& p, double reward, double value) {
  return fma(1.0 - p.lam, value, p.lam * reward);
}

// The map of all lanes up to this one. Composition: (a, b) after (a', b') is (a a', a b' + b).
__device__ inline Map scanned(Map map) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const double a = __shfl_up_sync(kFullWarp, map.a, step), b = __shfl_up_sync(kFullWarp, map.b, step);
    if (lane >= step) map = {map.a * a, fma(map.a, b, map.b)};
  }
  return map;
}

// u behind the piece in this slot: of the piece before it in the slots, that is after it in the sequence.
__device__ inline double carry_behind(const Workspace& w, int64_t slot, int64_t number) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool exists = lane < number;
  const int64_t mine = slot - 1 - lane;
  int known;  // the nearest slot that knows its carry
  for (;;) {
    const uint32_t state = exists ? simt::load_acquire(&w.states[mine]) : kNothing;
    const unsigned maps = __ballot_sync(kFullWarp, state != kNothing);
    const unsigned carries = __ballot_sync(kFullWarp, state == kHasCarry);
    known = __ffs(static_cast<int>(carries)) - 1;
    const unsigned nearer = known > 0 ? (1u << known) - 1u : 0u;
    if (known >= 0 && (maps & nearer) == nearer) break;
    simt::pause();
  }
  Map map{1.0, 0.0};
  if (lane < known) map = w.maps[mine];
  double carry = lane == known ? w.carries[mine] : 0.0;
  carry = __shfl_sync(kFullWarp, carry, known);
  for (int i = known - 1; i >= 0; --i)
    carry = fma(__shfl_sync(kFullWarp, map.a, i), carry, __shfl_sync(kFullWarp, map.b, i));
  return carry;
}

template <typename T>
__device__ void store_piece(const GaeParams<T>& p, const Piece& piece, simt::Shared<T> advantages,
                            simt::Shared<T> returns) {
  constexpr int kRows = kTokensOfLane<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int left = static_cast<int>(piece.end - piece.begin) - lane;
  const int64_t first = piece.end - 1 - lane;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (32 * i >= left) continue;
    p.advantages[first - 32 * i] = advantages[i * kRowPlaces<T> + lane + lane / kRows];
    p.returns[first - 32 * i] = returns[i * kRowPlaces<T> + lane + lane / kRows];
  }
}

template <typename T>
__device__ void scan_piece(const GaeParams<T>& p, const Workspace& w, int64_t slot, simt::Shared<T> rewards,
                           simt::Shared<T> values) {
  constexpr int kCount = kTokensOfLane<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const double c = p.gamma * p.lam;
  const Piece piece = piece_in(p, slot);
  const unsigned flags = load_piece(p, piece, rewards, values);
  Map map{1.0, 0.0};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {  // where nothing is trainable, 0 stands: the map is the identity
    const int place = lane * (kCount + 1) + i;
    const double decay = flags >> i & 1u ? c : 1.0;
    map = {decay * map.a, fma(decay, map.b, surplus(p, rewards[place], values[place]))};
  }
  const Map until = scanned(map);
  const Map of_piece{__shfl_sync(kFullWarp, until.a, 31), __shfl_sync(kFullWarp, until.b, 31)};
  double behind = 0.0;
  if (piece.number > 0) {
    if (lane == 0) {
      w.maps[slot] = of_piece;
      simt::store_release(&w.states[slot], kHasMap);
    }
    behind = carry_behind(w, slot, piece.number);
  }
  if (lane == 0) {
    w.carries[slot] = fma(of_piece.a, behind, of_piece.b);
    simt::store_release(&w.states[slot], kHasCarry);
  }

  const double a = __shfl_up_sync(kFullWarp, until.a, 1), b = __shfl_up_sync(kFullWarp, until.b, 1);
  double u = lane == 0 ? behind : fma(a, behind, b);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int place = lane * (kCount + 1) + i;
    const bool chosen = flags >> i & 1u;
    const double reward = rewards[place], value = values[place];
    const double advantage = fma(p.gamma, u, reward - value);
    u = fma(chosen ? c : 1.0, u, surplus(p, reward, value));
    rewards[place] = chosen ? static_cast<T>(advantage) : T(0);
    values[place] = chosen ? static_cast<T>(advantage + value) : T(0);
  }
  store_piece(p, piece, rewards, values);
}

template <typename T>
__global__ void __launch_bounds__(32 * kWarps, 3) scan_pieces(GaeParams<T> p, Workspace w, int64_t slots) {
  EARNEST_SHARED(uint32_t, ticket, 1);
  EARNEST_SHARED(T, rewards, kWarps * kPlaces<T>);
  EARNEST_SHARED(T, values, kWarps * kPlaces<T>);
  check_bounds(p, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  if (threadIdx.x == 0) ticket[0] = atomicAdd(&w.states[slots], 1u);
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t slot = static_cast<int64_t>(ticket[0]) * kWarps + warp;
  if (slot < slots) scan_piece(p, w, slot, rewards + warp * kPlaces<T>, values + warp * kPlaces<T>);
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
  const int64_t slots = num_slots<T>(p.tokens, p.sequences);
  if (slots == 0) return {};
  if (p.workspace == nullptr) return invalid_argument("gae", "workspace", "memory on the device", "none");
  const Workspace w = workspace_at(p.workspace, slots);
  const size_t state_bytes = static_cast<size_t>(slots + 1) * sizeof(uint32_t);
  if (Status status = cuda::fill("gae", w.states, 0, state_bytes, p.stream); !status.ok()) return status;
  return simt::launch({"gae", "scan_pieces"}, scan_pieces<T>, static_cast<unsigned>(num_blocks(slots)),
                      32 * kWarps, 0, p.stream, p, w, slots);
}

template Status gae_cuda<float>(const GaeParams<float>&);
template Status gae_cuda<double>(const GaeParams<double>&);

}  // namespace earnest::ppo
