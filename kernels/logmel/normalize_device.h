// SPDX-License-Identifier: Apache-2.0
// How the blocks of one launch share out a schedule (schedule.h) and wait for a clip's maximum.
#pragma once

#include "kernels/common/simt.h"
#include "kernels/logmel/cuda_tile.h"
#include "kernels/logmel/schedule.h"

namespace earnest::logmel {

// The workspace: zeros between launches.
struct Progress {
  uint32_t ticket, blocks_left;
  struct {
    uint32_t highest, tiles_done;  // highest: in the order of keys
  } clips[1];                      // as many as there are
};

__device__ __forceinline__ uint32_t highest_of_warp(uint32_t key) {
#if defined(__CUDA_ARCH__)
  return __reduce_max_sync(simt::kFullWarp, key);
#else
  for (int apart = simt::kWarpSize / 2; apart > 0; apart /= 2) {
    const uint32_t other = __shfl_xor_sync(simt::kFullWarp, key, apart);
    key = other > key ? other : key;
  }
  return key;
#endif
}

// What a block is to do: a tile of a clip, or (tile < 0) one of the parts of its normalising, once so many
// tiles are done.
struct Work {
  int64_t clip, tile, part, parts, tiles;
};

// Keys order as floats do; that of any float is above zero.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float float_of(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The step that a ticket belongs to, by a warp that looks at 32 places at a time.
__device__ __forceinline__ int64_t step_of(const Schedule& schedule, int64_t ticket) {
  int64_t low = 0, high = schedule.steps();
  while (high - low > 1) {
    const int64_t apart = (high - low + simt::kWarpSize - 1) / simt::kWarpSize;
    const int64_t step = low + apart * lane_index();
    const bool begun = step < high && schedule.begin(step) <= ticket;
    low += apart * (__popc(__ballot_sync(simt::kFullWarp, begun)) - 1);  // that of lane 0 has
    high = low + apart < high ? low + apart : high;
  }
  return low;
}

// By one warp. Without parts nobody waits, and blocks need no tickets.
__device__ __forceinline__ Work next_work(const Schedule& schedule, Progress* progress) {
  int64_t ticket = blockIdx.x;
  if (schedule.lag > 0) {
    if (lane_index() == 0) ticket = atomicAdd(&progress->ticket, 1u);
    ticket = __shfl_sync(simt::kFullWarp, ticket, 0);
  }
  const int64_t step = step_of(schedule, ticket), turn = ticket - schedule.begin(step);
  const int64_t tiles = step < schedule.clips ? schedule.tiles_of(step) : 0;
  if (turn < tiles) return {step, turn, 0, 0, tiles};
  const int64_t clip = step - schedule.lag;
  return {clip, -1, turn - tiles, schedule.parts_before(clip + 1) - schedule.parts_before(clip),
          schedule.tiles_of(clip)};
}

// A tile is written, and `highest` the largest number that the thread has seen of it.
__device__ __forceinline__ void publish(Progress* progress, int64_t clip, float highest) {
  EARNEST_SHARED(uint32_t, of_block, 1);
  if (threadIdx.x == 0) of_block[0] = 0;
  __syncthreads();
  const uint32_t key = highest_of_warp(key_of(highest));
  if (lane_index() == 0) atomicMax(&of_block[0], key);
  __threadfence();  // what this thread has written is seen before the tile counts as done
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicMax(&progress->clips[clip].highest, of_block[0]);
    __threadfence();
    atomicAdd(&progress->clips[clip].tiles_done, 1u);
  }
}

__device__ __forceinline__ float normalized(float x, float floor) {
  return fmaf(fmaxf(x, floor), 0.25f, 1.0f);
}

// One part of a clip's numbers, once all its tiles are done. raw may be out.
__device__ __forceinline__ void normalize_part(Progress* progress, const Work& work, const float* raw,
                                               float* out, int64_t count) {
  struct Part {
    int64_t begin;  // in fours
    int fours;
    float floor;
  };
  EARNEST_SHARED(Part, part, 1);
  const int64_t fours = count / 4;
  if (threadIdx.x == 0) {
    const int64_t each = (fours + work.parts - 1) / work.parts, begin = each * work.part;
    while (simt::load_acquire(&progress->clips[work.clip].tiles_done) != static_cast<uint32_t>(work.tiles))
      simt::pause();
    const int64_t left = fours - begin;
    part[0] = {begin,
               static_cast<int>(left < 0      ? 0
                                : left < each ? left
                                              : each),
               float_of(simt::load_acquire(&progress->clips[work.clip].highest)) - 8.0f};
  }
  __syncthreads();
  const auto [begin, fours_of_part, floor] = part[0];
  if ((reinterpret_cast<uintptr_t>(raw) | reinterpret_cast<uintptr_t>(out)) % sizeof(float4) == 0) {
    const float4* from = reinterpret_cast<const float4*>(raw) + begin;
    float4* to = reinterpret_cast<float4*>(out) + begin;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < fours_of_part; i += kThreads) {
      const float4 x = from[i];
      to[i] = {normalized(x.x, floor), normalized(x.y, floor), normalized(x.z, floor),
               normalized(x.w, floor)};
    }
  } else {
    for (int64_t i = 4 * begin + threadIdx.x; i < 4 * (begin + fours_of_part); i += kThreads)
      out[i] = normalized(raw[i], floor);
  }
  if (work.part == 0 && threadIdx.x < count % 4) {
    const int64_t i = 4 * fours + threadIdx.x;
    out[i] = normalized(raw[i], floor);
  }
}

// The last block to leave clears the workspace for the next launch. The first warp alone: no other one
// touches the workspace.
__device__ __forceinline__ void leave(Progress* progress, int64_t clips) {
  if (warp_index() != 0) return;
  const bool last = lane_index() == 0 && atomicAdd(&progress->blocks_left, 1u) == gridDim.x - 1;
  if (!__any_sync(simt::kFullWarp, last)) return;
  if (lane_index() == 0) progress->ticket = progress->blocks_left = 0;
  for (int64_t c = lane_index(); c < clips; c += simt::kWarpSize) progress->clips[c] = {0, 0};
}

}  // namespace earnest::logmel
