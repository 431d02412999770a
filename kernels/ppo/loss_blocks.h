// SPDX-License-Identifier: Apache-2.0
// How losses and moments on a GPU divide tokens among blocks, and what their scratch holds. The number of
// blocks is bounded, because one block sums what all have left behind; it depends on the number of tokens
// alone, and so does the order of sums.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ppo/loss.h"

namespace earnest::ppo::loss_blocks {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1024;  // four waves on 132 multiprocessors that hold two each

// A block's tokens: a whole number for each of its threads.
constexpr int64_t tokens_of_block(int64_t tokens) {
  const int64_t together = kThreads * kMostBlocks;
  const int64_t each = tokens / together + (tokens % together != 0);
  return kThreads * (each > 1 ? each : 1);
}
constexpr int64_t num_blocks(int64_t tokens) {
  const int64_t of_block = tokens_of_block(tokens);
  return tokens / of_block + (tokens % of_block != 0 || tokens == 0);  // one writes the sums of no tokens
}

struct Header {              // 0 at the start
  unsigned long long count;  // trainable tokens
  unsigned ticket;           // blocks that are done
  unsigned padding;
};
constexpr int kColumns = 32;  // a warp's: the sums, and nothing

constexpr size_t workspace_bytes(int64_t tokens) {
  return sizeof(Header) + static_cast<size_t>(num_blocks(tokens)) * kColumns * sizeof(double);
}

}  // namespace earnest::ppo::loss_blocks

// How ppo_loss numbers what can be wrong (kernels/common/device_fault.h): its arrays in the order of
// messages.
namespace earnest::ppo::loss_faults {
constexpr int kLogp = 0, kLogpOld = 1, kAdvantages = 2, kValues = 3, kValuesOld = 4, kReturns = 5,
              kLogpRef = 6, kEntropy = 7, kWeights = 8, kNormalizer = 9;
}
