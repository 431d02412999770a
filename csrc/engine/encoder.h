// SPDX-License-Identifier: Apache-2.0
// The audio encoder: mel frames -> 50 Hz Whisper-type transformer -> 25 Hz frames (average pool, last norm).
//
//   x = gelu(conv1(mel)); x = gelu(conv2(x)) (stride 2); x += position table
//   for every block: x += out(attention(attn_ln(x))); x += mlp(mlp_ln(x))
//   frames = after_norm(avg_pool2(x))
//
// A chunk is encoded alone and without padding; attention looks both ways, at its valid positions only.
#pragma once

#include <vector>

#include "csrc/engine/arena.h"
#include "csrc/engine/chunk_features.h"
#include "csrc/engine/config.h"
#include "csrc/engine/weights.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class Encoder {
 public:
  Status create(const EncoderConfig& config, Weights* weights);

  // One chunk -> out [config.kept_frames(frames), n_audio_state] of the model's precision, where the arena
  // and the weights lie. May throw std::bad_alloc.
  Status run(const Sound& sound, void* out, Arena* arena) const;

 private:
  struct Norm {
    const Array *weight = nullptr, *bias = nullptr;
  };
  struct Block {
    Norm attention_norm, mlp_norm;
    const Matrix *qkv = nullptr, *out = nullptr, *widen = nullptr, *narrow = nullptr;
  };

  template <typename T>
  struct Sent;

  template <typename T>
  Status run_as(const Sound& sound, T* out, Arena* arena) const;
  template <typename T>
  Status normalise(const Norm& norm, const T* x, int64_t rows, T* y, Arena* arena) const;
  template <typename T>
  Status convolve(const Sent<T>& sent, T* x, Arena* arena) const;
  template <typename T>
  Status attend(const Block& block, const Sent<T>& sent, T* x, Arena* arena) const;
  template <typename T>
  Status feed_forward(const Block& block, int64_t rows, T* x, Arena* arena) const;

  EncoderConfig config_;
  Precision precision_ = Precision::kFloat32;
  const Matrix *conv1_ = nullptr, *conv2_ = nullptr;
  const Array* positions_ = nullptr;
  std::vector<Block> blocks_;
  Norm after_norm_;
};

}  // namespace earnest::engine
