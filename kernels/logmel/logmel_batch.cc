// SPDX-License-Identifier: Apache-2.0
#include "kernels/logmel/logmel_batch.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/common/cuda.h"
#include "kernels/logmel/logmel_cuda.h"
#include "kernels/logmel/signal.h"

namespace earnest::logmel {
namespace {

Status refuse(const std::string& argument, const std::string& expected, const std::string& got) {
  return invalid_argument("logmel", argument, expected, got);
}

Status check_range(const char* argument, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return {};
  return refuse(argument, std::to_string(least) + " to " + std::to_string(most), std::to_string(value));
}

Status check_memory(const char* argument, const void* memory, bool needed) {
  if (memory != nullptr || !needed) return {};
  return refuse(argument, "memory on the device", "a null pointer");
}

#define EARNEST_RETURN_IF_BAD(call) \
  if (Status status = (call); !status.ok()) return status

bool is_unrolled(int n_mels) { return n_mels == 80 || n_mels == 128; }

Status check(const Clips& clips) {
  EARNEST_RETURN_IF_BAD(check_range("clips", clips.clips, 0, kMostClips));
  EARNEST_RETURN_IF_BAD(check_range("n_mels", clips.n_mels, 1, kMaxMels));
  EARNEST_RETURN_IF_BAD(check_range("samples", clips.samples, 0, kMaxSamples));
  EARNEST_RETURN_IF_BAD(check_range("frames", clips.frames, 0, kMostFrames));
  if ((clips.cu_samples == nullptr) != (clips.cu_frames == nullptr))
    return refuse("cu_frames", "offsets of both samples and frames, or of neither", "one alone");
  if (clips.cu_samples == nullptr) {
    const int64_t expected = frame_count(clips.samples, clips.padding);
    if (clips.clips > 0 ? clips.frames % clips.clips != 0 || clips.frames / clips.clips != expected
                        : clips.frames != 0)
      return refuse("frames", std::to_string(expected) + " of each clip",
                    std::to_string(clips.frames) + " in all");
  }
  if (!is_unrolled(clips.n_mels) && clips_path(clips) != ClipsPath::kLoops)
    return refuse("n_mels", "80 or 128 of an unrolled path", std::to_string(clips.n_mels));
  EARNEST_RETURN_IF_BAD(check_memory("pcm", clips.pcm, clips.clips > 0 && clips.samples > 0));
  EARNEST_RETURN_IF_BAD(check_memory("out", clips.out, clips.frames > 0));
  EARNEST_RETURN_IF_BAD(check_memory("workspace", clips.workspace, clips.normalized && clips.clips > 0));
  return check_memory("fault", clips.fault, clips.clips > 0);
}

Status check(const Push& push) {
  EARNEST_RETURN_IF_BAD(check_range("streams", push.streams, 0, kMostClips));
  EARNEST_RETURN_IF_BAD(check_range("n_mels", push.n_mels, 1, kMaxMels));
  EARNEST_RETURN_IF_BAD(check_range("samples", push.samples, 0, kMaxSamples));
  EARNEST_RETURN_IF_BAD(check_range("frames", push.frames, 0, kMostFrames));
  EARNEST_RETURN_IF_BAD(check_range("most_frames", push.most_frames, 0, push.frames));
  const bool any = push.streams > 0;
  EARNEST_RETURN_IF_BAD(check_memory("states", push.states, any));
  EARNEST_RETURN_IF_BAD(check_memory("pcm", push.pcm, push.samples > 0));
  EARNEST_RETURN_IF_BAD(check_memory("cu_samples", push.cu_samples, any));
  EARNEST_RETURN_IF_BAD(check_memory("cu_frames", push.cu_frames, any));
  EARNEST_RETURN_IF_BAD(check_memory("out", push.out, push.frames > 0));
  return check_memory("fault", push.fault, any);
}

Status check(const Normalization& call) {
  EARNEST_RETURN_IF_BAD(check_range("clips", call.clips, 0, kMostClips));
  EARNEST_RETURN_IF_BAD(check_range("n_mels", call.n_mels, 1, kMaxMels));
  EARNEST_RETURN_IF_BAD(check_range("frames", call.frames, 0, kMostFrames));
  if (call.cu_frames == nullptr && (call.clips > 0 ? call.frames % call.clips != 0 : call.frames != 0))
    return refuse("frames", "as many of each clip", std::to_string(call.frames) + " in all");
  EARNEST_RETURN_IF_BAD(check_memory("raw", call.raw, call.frames > 0));
  EARNEST_RETURN_IF_BAD(check_memory("out", call.out, call.frames > 0));
  return check_memory("workspace", call.workspace, call.clips > 0);
}

// ---- what a fault word says ----

template <typename T>
Status read(const T* from, int64_t count, void* stream, std::vector<T>* to) {
  to->resize(static_cast<size_t>(count));
  return cuda::copy("logmel", to->data(), from, to->size() * sizeof(T), stream);
}

// A word that tells of log-mel, or none.
Status read_word(const FaultWord* word, void* stream, bool* found, Fault* fault) {
  FaultWord value = kNoFault;
  EARNEST_RETURN_IF_BAD(cuda::copy("logmel", &value, word, sizeof value, stream));
  *fault = fault_of(value);
  *found = value != kNoFault && fault->op == FaultOp::kLogMel;
  return {};
}

Status bad_sample(const Fault& fault, const float* pcm, void* stream, const std::string& place) {
  std::string value = static_cast<SampleFault>(fault.argument) == SampleFault::kNan ? "nan" : "inf";
  if (static_cast<SampleFault>(fault.argument) == SampleFault::kLarge) {
    float x = 0;
    EARNEST_RETURN_IF_BAD(cuda::copy("logmel", &x, pcm + fault.index, sizeof x, stream));
    value = std::to_string(x);
  }
  return refuse("pcm", "finite samples of magnitude at most 1e15", value + " at sample " + place);
}

bool is_of_sample(const Fault& fault) { return fault.argument <= static_cast<int>(SampleFault::kLarge); }

// Whose part of pcm a sample belongs to.
int64_t owner(const std::vector<int64_t>& offsets, int64_t index) {
  return std::upper_bound(offsets.begin(), offsets.end(), index) - offsets.begin() - 1;
}

}  // namespace

int64_t workspace_size(int64_t clips) { return 8 + 8 * clips; }

ClipsPath clips_path(const Clips& clips) {
  if (clips.path != ClipsPath::kBest) return clips.path;
  return is_unrolled(clips.n_mels) ? ClipsPath::kUnrolledBands : ClipsPath::kLoops;
}

int64_t stream_size() { return sizeof(StreamState); }

int64_t ready_frames(int64_t before, int64_t samples, bool last, Padding padding) {
  const int64_t all = before + samples;
  return (last ? frame_count(all, padding) : whole_frames(all)) - whole_frames(before);
}

Status run(const Clips& clips) {
  EARNEST_RETURN_IF_BAD(check(clips));
  return clips.clips > 0 ? launch_clips(clips) : Status();
}

Status push(const Push& push) {
  EARNEST_RETURN_IF_BAD(check(push));
  return push.streams > 0 ? launch_push(push) : Status();
}

Status normalize(const Normalization& normalization) {
  EARNEST_RETURN_IF_BAD(check(normalization));
  return normalization.clips > 0 ? launch_normalize(normalization) : Status();
}

Status fault(const Clips& clips) {
  Fault fault;
  bool found;
  EARNEST_RETURN_IF_BAD(read_word(clips.fault, clips.stream, &found, &fault));
  if (!found) return {};
  if (!is_of_sample(fault))
    return refuse("cu_frames", "the sums of frame_count of each clip's samples",
                  "others at clip " + std::to_string(fault.index));
  if (clips.clips == 1) return bad_sample(fault, clips.pcm, clips.stream, std::to_string(fault.index));
  int64_t clip = clips.cu_samples == nullptr ? fault.index / clips.samples : 0, begin = clip * clips.samples;
  if (clips.cu_samples != nullptr) {
    std::vector<int64_t> offsets;
    EARNEST_RETURN_IF_BAD(read(clips.cu_samples, clips.clips + 1, clips.stream, &offsets));
    clip = owner(offsets, fault.index);
    begin = offsets[static_cast<size_t>(clip)];
  }
  const std::string place = std::to_string(fault.index - begin) + " of clip " + std::to_string(clip);
  return bad_sample(fault, clips.pcm, clips.stream, place);
}

Status fault(const Push& push) {
  Fault fault;
  bool found;
  EARNEST_RETURN_IF_BAD(read_word(push.fault, push.stream, &found, &fault));
  if (!found) return {};
  const auto of_stream = [&](int64_t s) { return push.streams > 1 ? " of stream " + std::to_string(s) : ""; };
  const auto kind = static_cast<SampleFault>(fault.argument);
  if (kind == SampleFault::kOffsets)
    return refuse("cu_frames", "as many frames as the chunk makes ready",
                  "another number" + of_stream(fault.index));
  if (kind == SampleFault::kEnded)
    return refuse("push", "a stream that is not finished", "one that is" + of_stream(fault.index));
  if (kind == SampleFault::kEmpty)
    return refuse("pcm", "at least one sample", "none" + of_stream(fault.index));
  std::vector<int64_t> offsets;
  EARNEST_RETURN_IF_BAD(read(push.cu_samples, push.streams + 1, push.stream, &offsets));
  const int64_t s = owner(offsets, fault.index);
  int64_t id = s;
  if (push.ids != nullptr)
    EARNEST_RETURN_IF_BAD(cuda::copy("logmel", &id, push.ids + s, sizeof id, push.stream));
  StreamState state;
  EARNEST_RETURN_IF_BAD(cuda::copy("logmel", &state, static_cast<const StreamState*>(push.states) + id,
                                   sizeof state, push.stream));
  const int64_t sample = state.pushed + fault.index - offsets[static_cast<size_t>(s)];
  return bad_sample(fault, push.pcm, push.stream, std::to_string(sample) + of_stream(s));
}

}  // namespace earnest::logmel
