// SPDX-License-Identifier: Apache-2.0
// Pitch of 16 kHz speech, 100 frames a second: fundamental frequency, voicing and energy, of a whole clip or
// of a stream.
//
//   y      = x through a half-band filter, every other sample (8 kHz)
//   X_t    = DFT of hann[j] (y[80 t - w/2 + j] - mean), j < w: three periods of f0_min around the frame's
//   centre r_t[l] = DFT of |X_t[k]|^1.5 / (1 + (hz_k / 2500)^4), divided by r_t[0] and by what the window
//   alone gives
//
// Peaks of r_t between the lags of f0_max and f0_min are candidate periods; their heights say how periodic
// the frame is (Boersma 1993, whose r has |X|^2). The four best of each frame compete with "unvoiced", and
// the path with the greatest sum of heights, less the costs of leaps in pitch and changes of voicing,
// decides. Frame t is decided when frame t + kLookahead is known, in a clip as in a stream, so that both give
// the same bits: f0, voicing and energy depend on the samples up to then and the CPU tier alone, not on
// chunks or threads.
//
// Samples before the start and after the end count as the clip's mean (the filter sees the outermost sample
// go on). floor(samples / 160) frames, frame t centred on sample 160 t.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/common/device.h"
#include "kernels/common/status.h"

namespace earnest::pitch {

constexpr int kHop = 160;
constexpr int kLookahead = 20;          // frames
constexpr float kMaxMagnitude = 1e15f;  // the power of larger samples would leave float32
// Of a clip or stream, two years of them, so that no size overflows.
constexpr int64_t kMaxSamples = int64_t{1} << 40;

struct Settings {
  float f0_min = 65.0f, f0_max = 600.0f;  // Hz, 20 <= f0_min < f0_max <= 2000
  float voicing_threshold = 0.45f;        // 0 to 1: height below which a frame tends to unvoiced
  float silence_threshold = 0.03f;  // 0 to 1: amplitude, relative to the loudest so far, that is silence
};

int64_t frame_count(int64_t samples);  // floor(samples / 160)

struct Params {
  Device device = Device::kCpu;
  const float* pcm = nullptr;  // [samples], 1 to kMaxSamples; finite, magnitudes up to kMaxMagnitude
  int64_t samples = 0;
  Settings settings;
  float* f0 = nullptr;       // [frames] Hz, 0 where unvoiced
  float* voicing = nullptr;  // [frames] height of the tallest peak, 0 (noise) to 1 (a periodic wave)
  float* energy = nullptr;   // [frames] mean square of the 20 ms around the centre, without the local mean
};

Status run(const Params& params);

// The oracle: the formula in plain float64 loops (the path search is shared).
Status reference(const Params& params);

// The back end that would run, e.g. "cpu/avx512"; an error if there is none.
Status which(Device device, std::string* name);

// The same frames while the samples arrive: push chunks of any size, read what is ready, finish, read the
// rest. With f0_min 65, frame t is ready once 160 (t + kLookahead) + 396 samples are in, 225 ms after its
// centre. A failed call leaves the stream as it was.
class Stream {
 public:
  static Status create(Device device, const Settings& settings, std::unique_ptr<Stream>* stream);
  ~Stream();

  Status push(const float* pcm, int64_t samples);  // nothing may be pushed after finish
  Status finish();                                 // at least one sample must have been pushed
  int64_t ready() const;                           // frames that read can give now

  // Writes the next `frames` frames, frames <= ready().
  Status read(int64_t frames, float* f0, float* voicing, float* energy);

 private:
  struct State;
  explicit Stream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace earnest::pitch
