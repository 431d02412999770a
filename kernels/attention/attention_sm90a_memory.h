// SPDX-License-Identifier: Apache-2.0
// Path sm90a, forward: its schedules, and what a block has in shared memory.
//
// Keys and values of a tile go round in kStages places. Of each place there are four barriers:
//   keys, values:           the loading thread arrives once, telling of the bytes that TMA counts
//   keys_read, values_read: eight warps arrive, when their products have read the place
// The n-th use of a place waits at the first two for parity n % 2, and to load for it at the others for
// parity (n + 1) % 2, which for n = 0 is over. All threads walk the same tiles, so that they count alike.
#pragma once

#include "kernels/attention/attention_warpgroups.h"

namespace earnest::attention::gpu::sm90a {

// keys: of a tile. takes_turns: a warpgroup issues its products while the other one has softmax to do.
// goes_ahead: a warpgroup's softmax runs beside its own product with the values of the tile before.
template <int kTileKeys, bool kTakesTurns, bool kGoesAhead>
struct Form {
  static constexpr int keys = kTileKeys;
  static constexpr bool takes_turns = kTakesTurns, goes_ahead = kGoesAhead;
};
struct Series : Form<64, false, false> {};
struct Turns : Form<64, true, false> {};
struct Ahead : Form<64, false, true> {};
struct Both : Form<64, true, true> {};
struct Wide : Form<128, true, true> {};

struct Stage {
  Barrier keys, values, keys_read, values_read;
  __device__ void init() {
    hopper::init(&keys, 1);
    hopper::init(&values, 1);
    hopper::init(&keys_read, kMultiplyingWarps);
    hopper::init(&values_read, kMultiplyingWarps);
  }
};

// A tile's keys are panels of 64 numbers, its values parts of 64 keys: products count on the first lying so
// in boxes one behind the other, and on the second.
template <int kDim, int kTileKeys>
struct ForwardMemory {  // in bytes
  static constexpr int kKeysOfTile = kTileKeys, kStages = 256 / kTileKeys;
  using Position = Round<kStages>;
  static constexpr int kPanels = kDim / kBox, kParts = kTileKeys / kBox;
  static constexpr int kQueries = kTileRows * kDim * 2, kTile = kTileKeys * kDim * 2;
  static constexpr int kAlignment = 1024;  // of boxes, which dynamic shared memory need not have
  static constexpr size_t kBytes = kQueries + 2 * kStages * kTile + kStages * sizeof(Stage) + kAlignment;
  static_assert(kBytes <= 227 * 1024);
  Bytes q, tiles;
  Stage* stages;
  __device__ ForwardMemory() : ForwardMemory(simt::dynamic_shared<unsigned char>(0, kBytes)) {}
  __device__ explicit ForwardMemory(Bytes shared)
      : q(shared + (kAlignment - simt::shared_address(shared) % kAlignment) % kAlignment),
        tiles(q + kQueries),
        stages(reinterpret_cast<Stage*>(&tiles[2 * kStages * kTile])) {}
  __device__ Bytes keys(int stage) const { return tiles + 2 * stage * kTile; }
  __device__ Bytes values(int stage) const { return keys(stage) + kTile; }
  static constexpr int box_of_keys(int panel, int part) { return (panel * kParts + part) * kBoxBytes; }
  static constexpr int box_of_values(int panel, int part) { return (part * kPanels + panel) * kBoxBytes; }
};

// The same with room for one more set of sums, each thread's own: what earlier pieces of keys have left.
template <int kDim, int kTileKeys>
struct PiecesMemory : ForwardMemory<kDim, kTileKeys> {
  using Forward = ForwardMemory<kDim, kTileKeys>;
  static constexpr int kAside = kMultiplying * kDim / 2 * static_cast<int>(sizeof(float));
  static constexpr size_t kBytes = Forward::kBytes + kAside;
  static_assert(kBytes <= 227 * 1024);
  Bytes aside;
  __device__ PiecesMemory()
      : Forward(simt::dynamic_shared<unsigned char>(0, kBytes)),
        aside(this->tiles + 2 * Forward::kStages * Forward::kTile + Forward::kStages * int{sizeof(Stage)}) {}
};

}  // namespace earnest::attention::gpu::sm90a
