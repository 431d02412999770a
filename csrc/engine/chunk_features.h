// SPDX-License-Identifier: Apache-2.0
// The features of one chunk that is all there, as the encoder reads them and where it does: on a GPU one
// launch from samples to normalised log-mel and one that turns its bands into rows of frames.
#pragma once

#include <cstdint>

#include "csrc/engine/arena.h"
#include "csrc/engine/features.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// What an encoder hears, in memory of the host: a chunk's features, or the samples that they are made of.
struct Sound {
  const float* mel = nullptr;  // [frames, n_mels], normalised
  const float* pcm = nullptr;  // [samples], if there is no mel
  int64_t frames = 0, samples = 0;

  static Sound of_features(const float* mel, int64_t frames) { return {mel, nullptr, frames, 0}; }
  static Sound of_samples(const float* pcm, int64_t samples) {
    return {nullptr, pcm, mel_frames(samples), samples};
  }
};

// pcm [samples] -> mel [mel_frames(samples), n_mels], normalised and rounded to T, where the arena lies. On a
// GPU it waits for what the kernel says of the samples. Samples that are no numbers are an error, in the same
// words everywhere. May throw std::bad_alloc.
template <typename T>
Status features_of(const float* pcm, int64_t samples, int64_t n_mels, T* mel, Arena* arena);

}  // namespace earnest::engine
