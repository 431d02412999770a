// SPDX-License-Identifier: Apache-2.0
// A dialogue as the decoder sees it: ids, and for the places of sound which sound that is. Two transcripts
// agree where their ids and the contents of their sounds do; hashes of blocks, each over all before it, find
// candidates, and only a comparison decides.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "csrc/engine/chunk_features.h"
#include "csrc/engine/digest.h"
#include "csrc/engine/page_vector.h"

namespace earnest::engine {

// A chunk of sound: features or samples until the encoder has read them, embeddings from then on.
struct HeardChunk {
  Digest digest = {};  // of what it came as, features or samples, which decides everything that follows
  int64_t frames = 0, rows = 0;
  PageVector<float> mel;         // [frames, n_mels], or empty when it was heard
  PageVector<float> pcm;         // [samples] instead, where the model is on a GPU
  std::vector<char> embeddings;  // [rows, hidden_size] of the model's precision
  bool heard = false;

  Sound sound() const {
    if (pcm.empty()) return Sound::of_features(mel.data(), frames);
    return Sound::of_samples(pcm.data(), static_cast<int64_t>(pcm.size()));
  }
};

// The <audio_patch> tokens of one chunk: positions start .. start + chunk->rows.
struct AudioPlace {
  int64_t start = 0;
  std::shared_ptr<HeardChunk> chunk;
};

class Transcript {
 public:
  static constexpr int64_t kBlock = 16;  // tokens

  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<AudioPlace>& audio() const { return audio_; }
  int64_t size() const { return static_cast<int64_t>(ids_.size()); }

  void append(std::span<const int32_t> ids) { ids_.insert(ids_.end(), ids.begin(), ids.end()); }
  // With sounds whose places count from the first of these ids.
  void append(std::span<const int32_t> ids, std::span<const AudioPlace> audio);
  void truncate(int64_t size);

  // The first place that ends behind this position, or the end.
  std::vector<AudioPlace>::const_iterator audio_from(int64_t position) const;

  // Of the first (block + 1) * kBlock tokens, which are there. Costs each block once.
  uint64_t hash(int64_t block) const;

  // How many of the first tokens, at most `limit`, are the same.
  int64_t common(const Transcript& other, int64_t limit) const;

 private:
  std::vector<int32_t> ids_;
  std::vector<AudioPlace> audio_;  // by rising places
  mutable std::vector<uint64_t> hashes_;
};

}  // namespace earnest::engine
