// SPDX-License-Identifier: Apache-2.0
// Log-mel on a CUDA device: whole clips in one launch, and one step of many streams in another. The formula,
// the edges and the normaliser are those of logmel.h; a frame's bits depend on its samples alone: not on its
// batch, its clip's length, or the chunks in which a stream was pushed.
//
// All arrays lie on the device. A call puts one launch on the stream; it allocates nothing, waits for
// nothing, and can be captured in a CUDA graph. Offsets are read when the launch runs, sizes when it is made.
// What only the kernel can see (a sample that is not finite, offsets that do not fit) goes into the fault
// word (kernels/common/device_fault.h), of which fault() makes the CPU's message.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/device_fault.h"
#include "kernels/common/status.h"
#include "kernels/logmel/logmel.h"

namespace earnest::logmel {

// How the one kernel is compiled; the bits are the same. kUnrolledBands has the bands' filters written out
// (kernels/logmel/README.md), kUnrolled the first pass too: both of 80 and 128 bands alone.
enum class ClipsPath { kBest, kLoops, kUnrolledBands, kUnrolled };

// Clip c is pcm[cu_samples[c] .. cu_samples[c + 1]), of frame_count of them; its [n_mels, frames] of features
// begin at out + n_mels * cu_frames[c]. An empty clip has no frames by Whisper's rule and, as 479 zeros, two
// by Step-Audio's. Offsets lie on the device and are not read before the launch: that they never fall is the
// caller's promise, as that a pointer is one. Others that do not fit the samples are a fault.
struct Clips {
  const float* pcm = nullptr;
  int64_t clips = 0;
  int64_t samples = 0;                  // of all clips; of each, if there are no offsets
  const int64_t* cu_samples = nullptr;  // [clips + 1], from 0 to samples; or null: all clips are as long
  int64_t frames = 0;                   // of all clips: what out has room for
  const int64_t* cu_frames =
      nullptr;  // [clips + 1], the sums of frame_count, to `frames`; or null with the other
  int n_mels = 80;
  Padding padding = Padding::kWhisper;
  bool normalized = true;  // by each clip's own maximum; or raw
  ClipsPath path = ClipsPath::kBest;
  float* out = nullptr;
  // workspace_size(clips) bytes, unused if raw: zeros before the first launch, and left so by every launch.
  // Two launches at a time need two.
  void* workspace = nullptr;
  FaultWord* fault = nullptr;
  void* stream = nullptr;
};

// No more than these at a time.
constexpr int64_t kMostClips = int64_t{1} << 24, kMostFrames = (int64_t{1} << 32) - 1;

int64_t workspace_size(int64_t clips);

// The path that runs.
ClipsPath clips_path(const Clips& clips);

// Refused samples may leave anything in their clip's features, and nothing elsewhere.
Status run(const Clips& clips);

// One chunk for each of many streams, and the raw frames that are then ready: ready_frames(...) of them.
// A stream is stream_size() bytes of states: zeros are one that nothing was pushed to.
struct Push {
  void* states = nullptr;
  int64_t streams = 0;
  const int64_t* ids = nullptr;         // [streams], which of the states, none twice; null: 0 .. streams - 1
  const float* pcm = nullptr;           // stream s gets pcm[cu_samples[s] .. cu_samples[s + 1]), maybe none
  const int64_t* cu_samples = nullptr;  // [streams + 1], from 0 to samples
  int64_t samples = 0;                  // of all chunks
  const uint8_t* last = nullptr;        // [streams], 1: the stream ends with this chunk; null: none does
  const int64_t* cu_frames = nullptr;   // [streams + 1]: out + n_mels * cu_frames[s] is [n_mels, frames] of s
  int64_t frames = 0;                   // of all streams in this step: what out has room for
  int64_t most_frames = 0;              // of any stream in this step
  int n_mels = 80;
  Padding padding = Padding::kWhisper;
  float* out = nullptr;
  FaultWord* fault = nullptr;
  void* stream = nullptr;
};

int64_t stream_size();

// Frames that a chunk makes ready on a stream that has had `before` samples; with `last`, all that are left.
int64_t ready_frames(int64_t before, int64_t samples, bool last, Padding padding);

// A refused chunk (samples that are not finite, more or fewer frames than were made room for, a stream that
// has ended or ends without a sample) leaves its stream as it was, and the other streams do not notice.
Status push(const Push& push);

// raw -> normalised, each clip by its own maximum, laid out as Clips has them; raw == out is fine. For frames
// that came from streams.
struct Normalization {
  const float* raw = nullptr;
  int64_t clips = 0;
  int64_t frames = 0;                  // of all clips
  const int64_t* cu_frames = nullptr;  // [clips + 1], from 0 to frames; or null: all clips have as many
  int n_mels = 80;
  float* out = nullptr;
  void* workspace = nullptr;  // as of Clips
  void* stream = nullptr;
};
Status normalize(const Normalization& normalization);

// What the fault word says, in the words of the CPU: ok if nothing is wrong. Reads the arrays of the call,
// which must be as they were, and waits for the stream.
Status fault(const Clips& clips);
Status fault(const Push& push);

}  // namespace earnest::logmel
