// SPDX-License-Identifier: Apache-2.0
// From samples to mel frames, chunk by chunk. A clip of up to 29.98 s is one chunk; a longer one is cut every
// 25 s. Each chunk is padded, and its features normalised, alone (the published helper code of the family).
//
// On the CPU frames are computed as samples come. For a model on a GPU samples are checked and cut alike, and
// handed on: their features are computed where the encoder reads them (chunk_features.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/engine/page_vector.h"
#include "kernels/common/device.h"
#include "kernels/common/status.h"
#include "kernels/logmel/logmel.h"

namespace earnest::engine {

constexpr int64_t kSampleRate = 16000;
constexpr int64_t kChunkSamples = 25 * kSampleRate;
// 3,000 mel frames fill the encoder's 1,500 positions; one sample more would overflow them.
constexpr int64_t kMaxChunkSamples = 3000 * logmel::kHop + logmel::kHop - 1 - logmel::kStepAudioZeros;

// Mel frames of one chunk: ceil(samples / 160) + 2, of which two come from padding.
int64_t mel_frames(int64_t samples);

// The chunks of a clip; none for no samples.
std::vector<int64_t> chunk_sizes(int64_t samples);

struct Chunk {
  int64_t samples = 0, frames = 0;
  PageVector<float> mel;  // on the CPU: [frames, n_mels], normalised
  PageVector<float> pcm;  // for a GPU: [samples]
};

// A clip at 16 kHz that arrives in pieces of any size. A chunk is handed out as soon as no later sample can
// change it; on the CPU its frames are computed as soon as their samples are in.
class ClipFeatures {
 public:
  // device: where the encoder runs.
  static Status create(int64_t n_mels, Device device, std::unique_ptr<ClipFeatures>* features);

  // Appends the chunks that closed. A refused piece leaves everything as it was, but for pieces of more than
  // a chunk, of which the chunks before the bad sample may have been taken.
  Status push(const float* pcm, int64_t samples, std::vector<Chunk>* closed);
  Status finish(std::vector<Chunk>* closed);  // the end of the clip, and the beginning of the next

  int64_t pushed() const { return pushed_; }  // samples of this clip so far

 private:
  ClipFeatures(int64_t n_mels, Device device) : n_mels_(n_mels), device_(device) {}

  Status begin();
  Status take(const float* pcm, int64_t samples);
  Status read_ready();
  Status close(std::vector<Chunk>* closed);
  Status split(std::vector<Chunk>* closed);
  Status hand_on(int64_t samples, std::vector<Chunk>* closed);
  Status normalise(Chunk* chunk) const;

  const int64_t n_mels_;
  const Device device_;
  bool split_ = false;  // the clip is known to be longer than one chunk
  int64_t pushed_ = 0;
  PageVector<float> pcm_;  // of the open chunk
  // On the CPU:
  PageVector<float> raw_;   // its frames so far, [frames, n_mels]
  PageVector<float> read_;  // frames on their way from the stream
  std::unique_ptr<logmel::Stream> stream_;
};

}  // namespace earnest::engine
