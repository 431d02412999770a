// SPDX-License-Identifier: Apache-2.0
// The adaptor: encoder frames at 25 Hz -> decoder positions at 12.5 Hz.
//
//   y = gelu(conv(frames)) (three taps, stride 2); y = linear2(relu(linear1(y)))
#pragma once

#include "csrc/engine/arena.h"
#include "csrc/engine/config.h"
#include "csrc/engine/weights.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class Adaptor {
 public:
  Status create(const EncoderConfig& config, Weights* weights);

  // frames [count, n_audio_state] of one chunk -> out [(count + 1) / 2, llm_dim], both of the model's
  // precision, where the arena and the weights lie. May throw std::bad_alloc.
  Status run(const void* frames, int64_t count, void* out, Arena* arena) const;

 private:
  template <typename T>
  Status run_as(const T* frames, int64_t count, T* out, Arena* arena) const;

  Precision precision_ = Precision::kFloat32;
  int64_t width_ = 0;
  const Matrix *conv_ = nullptr, *linear1_ = nullptr, *linear2_ = nullptr;
};

}  // namespace earnest::engine
