// SPDX-License-Identifier: Apache-2.0
// A clip that is being spoken into a session. Features are computed as samples come, on the thread that
// brings them, or where the model is on a GPU there, with the encoder's pass; every chunk of 25 s that closes
// is encoded and read by the decoder while the rest is spoken and nobody else waits. Its place in the
// dialogue is where it was created; one clip of a session at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "csrc/engine/features.h"
#include "csrc/engine/resampler.h"
#include "csrc/engine/session.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class SpokenClip {
 public:
  // 1,000 to 192,000 Hz; 1 to 64 channels, which are mixed (the mean).
  static Status create(const Session& session, std::string_view role, int64_t rate, int64_t channels,
                       std::unique_ptr<SpokenClip>* clip);
  ~SpokenClip();  // one that was not committed is forgotten
  SpokenClip(const SpokenClip&) = delete;
  SpokenClip& operator=(const SpokenClip&) = delete;

  // Interleaved; samples.size() is a multiple of the channels. kAudioFormat where a sample is not finite,
  // kContextFull beyond what the context has room for; nothing of the piece is taken then. Memory that runs
  // out may leave a part of it taken: then only clear() helps.
  Status push(std::span<const float> samples);
  Status push(std::span<const int16_t> samples);

  double seconds() const;  // pushed so far
  Status clear();          // forgets what was pushed

  // The end of the clip, which becomes a part of its message. One without samples adds nothing. Afterwards
  // there is nothing to do but to destroy.
  Status commit();

 private:
  SpokenClip(std::shared_ptr<Engine> engine, std::shared_ptr<SessionState> state, int64_t rate,
             int64_t channels);
  Status begin();
  Status remove();
  void set_open(bool open);
  Status check_piece(size_t samples) const;
  template <typename Sample>
  Status mix(std::span<const Sample> samples, double scale);
  Status hear(bool last);

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<SessionState> state_;
  const int64_t rate_, channels_;
  int64_t frames_ = 0;  // pushed, of each channel
  bool open_ = false;   // it stands in the session
  std::unique_ptr<Resampler> resampler_;
  std::unique_ptr<ClipFeatures> features_;
  std::vector<float> mono_, resampled_;
};

}  // namespace earnest::engine
