// SPDX-License-Identifier: Apache-2.0
// Continuations of many prompts side by side: each step draws a token of every sequence that is still alive
// and runs the decoder over those tokens, until each has met a stop token or has as many as it may.
//
// What a sequence says depends on its prompt and its own uniform numbers alone: not on the others, nor on
// when they end.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/kv_cache.h"
#include "csrc/engine/model.h"
#include "csrc/engine/sampler.h"
#include "kernels/common/status.h"

namespace earnest::engine {

struct GenerationSettings {
  Sampling sampling;
  int64_t most_tokens = 0;         // of each sequence, at least 1
  std::vector<int32_t> stop = {};  // tokens that end a sequence
  int64_t after_stop = 0;          // or let it go on for so many
};

struct Generated {
  std::vector<int64_t> ids;  // a stop token included
  std::vector<float>
      logp;              // of each at the sampling temperature (at 1 where that is 0): the trainer's numbers
  bool stopped = false;  // by a stop token; else by length
};

// caches: each holds the whole prompt and has room for what may come (a sequence ends where its room does).
// hidden [sequences, hidden_size]: the states of the prompts' last tokens. uniforms [sequences, most_tokens],
// in [0, 1). drawn_from [sequences, hidden_size] becomes the state that each one's last token was drawn from.
// May throw std::bad_alloc.
Status generate(const Model& model, const GenerationSettings& settings, std::vector<KVCache>* caches,
                const void* hidden, const double* uniforms, Arena* arena, std::vector<Generated>* generated,
                void* drawn_from);

}  // namespace earnest::engine
