// SPDX-License-Identifier: Apache-2.0
// The pieces of work that exist once per CPU tier, and what every piece must keep: its result depends on its
// own range of tokens alone, so that neither threads nor neighbours in a batch can change it.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/ppo/advantage.h"
#include "kernels/ppo/gae.h"
#include "kernels/ppo/loss.h"

namespace earnest::ppo {

constexpr int64_t kBlockTokens = 4096;  // one task of the loss and of whitening: its arrays stay in L2
constexpr int64_t kMostTokens = int64_t{1}
                                << 56;  // sizes in bytes, eight a token and more, stay far from overflow
constexpr int64_t kTaskTokens = 16384;  // one task of GAE: the sequences that begin within so many tokens
constexpr int64_t kParallelTokens = 32 * 1024;  // below this, waking other threads costs more than it saves

template <typename T>
struct TierKernels {
  // Sequences [first, last); false if an entry there may have to be reported.
  bool (*gae_sequences)(const GaeParams<T>& params, int64_t first, int64_t last);
  // Tokens [begin, end) of the loss; writes gradients and the block's sums; false if an entry there may have
  // to be reported.
  bool (*loss_block)(const LossParams<T>& params, double inverse_n, int64_t begin, int64_t end, double* sums);
  int64_t (*count_block)(const uint8_t* trainable, int64_t begin, int64_t end);
  bool (*moments_block)(const MomentsParams<T>& params, int64_t begin, int64_t end, Moments* moments);
  void (*whiten_block)(const WhitenParams<T>& params, double scale, int64_t begin, int64_t end);
};

namespace scalar {
template <typename T>
TierKernels<T> kernels();
}
namespace avx2 {
template <typename T>
TierKernels<T> kernels();
}
namespace avx512 {
template <typename T>
TierKernels<T> kernels();
}

// The kernels of the tier in use (kernels/common/cpu_tier.h).
template <typename T>
Status tier_kernels(TierKernels<T>* kernels);

// "cpu/avx2", "cuda/simt" and the like: the back end that would run.
Status which(Device device, std::string* name);

}  // namespace earnest::ppo
