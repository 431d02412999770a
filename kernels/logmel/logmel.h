// SPDX-License-Identifier: Apache-2.0
// Log-mel features of 16 kHz speech, by Whisper's definition, of a whole clip or of a stream.
//
//   X_t[k]    = sum_j  hann[j] * x[160 t - 200 + j] * exp(-2 pi i j k / 400)          j < 400, k <= 200
//   raw[m, t] = log10(max(1e-10, sum_k  slaney[m, k] * |X_t[k]|^2))                   t < frame_count
//   normalize = (max(raw, max over the clip of raw - 8) + 4) / 4
//
// Samples before the start and after the end are the clip reflected (x[-i] = x[i]), as often as it takes if
// the clip is shorter than 200 samples; one sample reflects into a constant. Whisper drops the last frame of
// its STFT, so frame t exists when the clip has 160 (t + 1) samples: a clip shorter than that has no frames
// at all. Step-Audio's rule appends 479 zeros to the clip first.
//
// A frame's bits depend on its samples and the CPU tier alone: not on its neighbours, the clip's length, the
// thread count, or the chunks in which a stream was pushed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/device.h"
#include "kernels/common/status.h"

namespace earnest::logmel {

constexpr int kWindow = 400, kHop = 160, kBins = kWindow / 2 + 1;
constexpr int kStepAudioZeros = 479;
constexpr int kMaxMels = 256;
constexpr float kMaxMagnitude = 1e15f;  // the power of larger samples would leave float32
// Of a clip or stream, two years of them, so that no size overflows.
constexpr int64_t kMaxSamples = int64_t{1} << 40;

enum class Padding { kWhisper, kStepAudio };

// floor(samples / 160) or floor((samples + 479) / 160).
int64_t frame_count(int64_t samples, Padding padding);

struct Params {
  Device device = Device::kCpu;
  const float* pcm = nullptr;  // [samples], 1 to kMaxSamples; finite, magnitudes up to kMaxMagnitude
  int64_t samples = 0;
  int n_mels = 80;  // 1 to kMaxMels; Whisper has 80 and 128
  Padding padding = Padding::kWhisper;
  float* out = nullptr;  // [n_mels, frame_count(samples, padding)], raw
};

// Refused samples may leave anything in out.
Status run(const Params& params);

// The oracle: the formula above in plain float64 loops, rounded once.
Status reference(const Params& params);

// out[i] = (max(raw[i], max(raw) - 8) + 4) / 4 for i < count; in place if out == raw.
Status normalize(Device device, const float* raw, int64_t count, float* out);

// What a stream asks of its bands, and of samples that come after `before` others: for who computes later,
// elsewhere.
Status check_n_mels(int64_t n_mels);
Status check_samples(const float* pcm, int64_t samples, int64_t before = 0);

// The back end that would run, e.g. "cpu/avx512"; an error if there is none.
Status which(Device device, std::string* name);

// The same frames while the samples arrive: push chunks of any size, read what is ready, finish, read the
// rest. Frame t is ready once 160 t + 200 samples are in (frame 0 needs 201). A failed call leaves the stream
// as it was.
class Stream {
 public:
  static Status create(Device device, int n_mels, Padding padding, std::unique_ptr<Stream>* stream);

  Status push(const float* pcm, int64_t samples);  // nothing may be pushed after finish
  Status finish();                                 // at least one sample must have been pushed
  int64_t ready(int64_t more = 0) const;  // frames that read can give now, or once so many more are in

  // Writes the next `frames` frames to out [n_mels, frames]; frames <= ready().
  Status read(int64_t frames, float* out);

  int n_mels() const { return n_mels_; }
  int64_t pushed() const { return pushed_; }  // samples so far

 private:
  Stream(int n_mels, Padding padding) : n_mels_(n_mels), padding_(padding) {}

  const int n_mels_;
  const Padding padding_;
  std::vector<float> held_;  // samples from index first_ on: all that frames not yet read may need
  int64_t first_ = 0;
  int64_t pushed_ = 0;
  int64_t next_ = 0;  // the frame that read gives next
  bool finished_ = false;
};

}  // namespace earnest::logmel
