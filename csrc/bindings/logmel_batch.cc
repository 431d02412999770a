// SPDX-License-Identifier: Apache-2.0
// Log-mel of batches of clips and of many streams, on a GPU.
#include "kernels/logmel/logmel_batch.h"

#include <cstdint>
#include <optional>
#include <string>

#include "csrc/bindings/place.h"

namespace earnest::bindings {
namespace {

using logmel::Padding;
using Offsets = AnyInput<int64_t, 1>;
using MaybeOffsets = std::optional<Offsets>;
using MaybeFlags = std::optional<AnyInput<uint8_t, 1>>;
using MaybeBytes = std::optional<AnyOutput<uint8_t, 1>>;

constexpr const char* kOp = "logmel";

Padding padding_of(bool step_audio) { return step_audio ? Padding::kStepAudio : Padding::kWhisper; }

void check_length(const char* name, int64_t expected, size_t got) {
  if (static_cast<int64_t>(got) == expected) return;
  raise_if_error(
      invalid_argument(kOp, name, "[" + std::to_string(expected) + "]", "[" + std::to_string(got) + "]"));
}

const int64_t* offsets_of(const Place& place, const char* name, const MaybeOffsets& offsets, int64_t count) {
  if (offsets) check_length(name, count, offsets->shape(0));
  return place.data(name, offsets);
}

Place place_of(const AnyInput<float, 1>& pcm, const Launch& launch) {
  const Place place(kOp, pcm, launch);
  if (place.device() == Device::kCpu)
    raise_if_error(unsupported(kOp, "pcm", "samples on cuda", "on the cpu"));
  return place;
}

void* workspace_of(const Place& place, const MaybeBytes& workspace, int64_t clips) {
  if (workspace) check_length("workspace", logmel::workspace_size(clips), workspace->shape(0));
  return place.data("workspace", workspace);
}

logmel::ClipsPath path_of(const std::string& name) {
  if (name == "loops") return logmel::ClipsPath::kLoops;
  if (name == "unrolled bands") return logmel::ClipsPath::kUnrolledBands;
  if (name == "unrolled") return logmel::ClipsPath::kUnrolled;
  if (name != "best")
    raise_if_error(invalid_argument(kOp, "path", "best, loops, unrolled bands or unrolled", name));
  return logmel::ClipsPath::kBest;
}

// pcm holds the samples of all clips, out their features one after another.
void clips(const AnyInput<float, 1>& pcm, int64_t count, const MaybeOffsets& cu_samples,
           const MaybeOffsets& cu_frames, int n_mels, bool step_audio, bool normalized,
           const AnyOutput<float, 1>& out, const MaybeBytes& workspace, uintptr_t stream,
           const std::optional<nb::callable>& allocate, const FaultArray& fault, const std::string& path) {
  const Place place = place_of(pcm, {stream, allocate, fault});
  logmel::Clips job;
  job.path = path_of(path);
  job.pcm = place.data("pcm", pcm);
  job.clips = count;
  job.cu_samples = offsets_of(place, "cu_samples", cu_samples, count + 1);
  job.cu_frames = offsets_of(place, "cu_frames", cu_frames, count + 1);
  job.samples = static_cast<int64_t>(pcm.shape(0));
  if (!cu_samples && count > 0) job.samples /= count;
  job.n_mels = n_mels;
  job.frames = n_mels > 0 ? static_cast<int64_t>(out.shape(0)) / n_mels : 0;
  job.padding = padding_of(step_audio);
  job.normalized = normalized;
  job.out = place.data("out", out);
  job.workspace = workspace_of(place, workspace, count);
  job.fault = place.fault();
  job.stream = place.stream();
  Status status;
  {
    nb::gil_scoped_release release;
    status = logmel::run(job);
  }
  raise_if_error(status);
}

// One step of many streams.
void push(const AnyOutput<uint8_t, 2>& states, const AnyInput<float, 1>& pcm, const MaybeOffsets& ids,
          const Offsets& cu_samples, const Offsets& cu_frames, int64_t most_frames, const MaybeFlags& last,
          int n_mels, bool step_audio, const AnyOutput<float, 1>& out, uintptr_t stream,
          const std::optional<nb::callable>& allocate, const FaultArray& fault) {
  const Place place = place_of(pcm, {stream, allocate, fault});
  const auto count = static_cast<int64_t>(cu_samples.shape(0)) - 1;
  if (count < 0) raise_if_error(invalid_argument(kOp, "cu_samples", "[streams + 1]", "[0]"));
  if (static_cast<int64_t>(states.shape(1)) != logmel::stream_size()) {
    raise_if_error(invalid_argument(kOp, "states", std::to_string(logmel::stream_size()) + " bytes a stream",
                                    std::to_string(states.shape(1))));
  }
  logmel::Push job;
  job.states = place.data("states", states);
  job.streams = count;
  job.ids = offsets_of(place, "ids", ids, count);
  job.pcm = place.data("pcm", pcm);
  job.samples = static_cast<int64_t>(pcm.shape(0));
  job.cu_samples = place.data("cu_samples", cu_samples);
  if (last) check_length("last", count, last->shape(0));
  job.last = place.data("last", last);
  check_length("cu_frames", count + 1, cu_frames.shape(0));
  job.cu_frames = place.data("cu_frames", cu_frames);
  job.most_frames = most_frames;
  job.n_mels = n_mels;
  job.frames = n_mels > 0 ? static_cast<int64_t>(out.shape(0)) / n_mels : 0;
  job.padding = padding_of(step_audio);
  job.out = place.data("out", out);
  job.fault = place.fault();
  job.stream = place.stream();
  Status status;
  {
    nb::gil_scoped_release release;
    status = logmel::push(job);
  }
  raise_if_error(status);
}

// Raw features of clips, one after another, by each clip's own maximum.
void normalize(const AnyInput<float, 1>& raw, const Offsets& cu_frames, int n_mels,
               const AnyOutput<float, 1>& out, const MaybeBytes& workspace, uintptr_t stream,
               const std::optional<nb::callable>& allocate, const FaultArray& fault) {
  const Place place = place_of(raw, {stream, allocate, fault});
  check_length("out", static_cast<int64_t>(raw.shape(0)), out.shape(0));
  logmel::Normalization job;
  job.raw = place.data("raw", raw);
  job.clips = static_cast<int64_t>(cu_frames.shape(0)) - 1;
  job.cu_frames = place.data("cu_frames", cu_frames);
  job.n_mels = n_mels;
  job.frames = n_mels > 0 ? static_cast<int64_t>(raw.shape(0)) / n_mels : 0;
  job.out = place.data("out", out);
  job.workspace = workspace_of(place, workspace, job.clips);
  job.stream = place.stream();
  Status status;
  {
    nb::gil_scoped_release release;
    status = logmel::normalize(job);
  }
  raise_if_error(status);
}

}  // namespace

void bind_logmel_batch(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  const auto maybe = [](const char* name) { return nb::arg(name).noconvert().none(); };
  const auto stream = nb::arg("stream") = 0;
  const auto allocate = nb::arg("allocate") = nb::none();
  const auto fault = nb::arg("fault").noconvert() = nb::none();
  module.def("logmel_clips", &clips, array("pcm"), nb::arg("clips"), maybe("cu_samples"), maybe("cu_frames"),
             nb::arg("n_mels"), nb::arg("step_audio"), nb::arg("normalized"), array("out"),
             maybe("workspace"), stream, allocate, fault, nb::arg("path") = "best");
  module.def("logmel_push", &push, array("states"), array("pcm"), maybe("ids"), array("cu_samples"),
             array("cu_frames"), nb::arg("most_frames"), maybe("last"), nb::arg("n_mels"),
             nb::arg("step_audio"), array("out"), stream, allocate, fault);
  module.def("logmel_normalize_clips", &normalize, array("raw"), array("cu_frames"), nb::arg("n_mels"),
             array("out"), maybe("workspace"), stream, allocate, fault);
  module.def("logmel_workspace_size", &logmel::workspace_size, nb::arg("clips"));
  module.def("logmel_stream_size", &logmel::stream_size);
  module.def(
      "logmel_ready_frames",
      [](int64_t before, int64_t samples, bool last, bool step_audio) {
        return logmel::ready_frames(before, samples, last, padding_of(step_audio));
      },
      nb::arg("before"), nb::arg("samples"), nb::arg("last"), nb::arg("step_audio"));
}

}  // namespace earnest::bindings
