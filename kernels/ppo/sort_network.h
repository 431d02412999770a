// SPDX-License-Identifier: Apache-2.0
// The order in which a GPU sorts (Batcher's bitonic network): places i and i ^ stride are put in order,
// upwards where i & size is 0, for size 2, 4 ... and stride size / 2 ... 1. What fits into a block is done
// there at once.
#pragma once

#include <cstdint>
#include <vector>

namespace earnest::ppo::sort_network {

constexpr int kThreads = 512;
constexpr int64_t kPlaces = 2 * kThreads;  // of a block: a pair for each thread

// The network's width: a power of two, at least a block's.
constexpr int64_t padded(int64_t count) {
  int64_t places = kPlaces;
  while (places < count) places *= 2;
  return places;
}

// One launch: in blocks, all strides of the sizes [first, last] that fit into one; or one stride across
// blocks.
struct Step {
  bool in_block;
  int64_t first, last;  // sizes
  int64_t stride;       // across blocks
};

inline std::vector<Step> steps(int64_t places) {
  std::vector<Step> all{{true, 2, kPlaces, 0}};
  for (int64_t size = 2 * kPlaces; size <= places; size *= 2) {
    for (int64_t stride = size / 2; stride >= kPlaces; stride /= 2)
      all.push_back({false, size, size, stride});
    all.push_back({true, size, size, 0});
  }
  return all;
}

}  // namespace earnest::ppo::sort_network
