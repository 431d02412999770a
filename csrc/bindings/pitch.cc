// SPDX-License-Identifier: Apache-2.0
#include "kernels/pitch/pitch.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "kernels/common/thread_pool.h"
#include "kernels/pitch/syllables.h"

namespace earnest::bindings {
namespace {

pitch::Settings settings_of(float f0_min, float f0_max, float voicing_threshold, float silence_threshold) {
  return {f0_min, f0_max, voicing_threshold, silence_threshold};
}

pitch::Params params_of(const Input<float, 1>& pcm, const pitch::Settings& settings,
                        const Output<float, 2>& out) {
  pitch::Params params;
  params.pcm = data_of("pitch", "pcm", pcm);
  params.samples = static_cast<int64_t>(pcm.shape(0));
  params.settings = settings;
  const int64_t frames = pitch::frame_count(params.samples);
  if (out.shape(0) != 3 || static_cast<int64_t>(out.shape(1)) != frames) {
    const std::string got = std::to_string(out.shape(0)) + ", " + std::to_string(out.shape(1));
    raise_if_error(invalid_argument("pitch", "out", "[3, " + std::to_string(frames) + "]", "[" + got + "]"));
  }
  params.f0 = data_of("pitch", "out", out);
  params.voicing = params.f0 + frames;
  params.energy = params.f0 + 2 * frames;
  return params;
}

// out [3, frames]: f0, voicing, energy.
template <Status (*kRun)(const pitch::Params&)>
void run(const Input<float, 1>& pcm, const pitch::Settings& settings, const Output<float, 2>& out) {
  const pitch::Params params = params_of(pcm, settings, out);
  Status status;
  {
    nb::gil_scoped_release release;
    status = kRun(params);
  }
  raise_if_error(status);
}

// One clip a thread; the first clip that is refused is the error.
void run_batch(const std::vector<Input<float, 1>>& clips, const pitch::Settings& settings,
               const std::vector<Output<float, 2>>& out) {
  std::vector<pitch::Params> params;
  for (size_t i = 0; i < clips.size(); ++i) params.push_back(params_of(clips[i], settings, out.at(i)));
  std::vector<Status> statuses(clips.size());
  {
    nb::gil_scoped_release release;
    parallel_for(static_cast<int64_t>(clips.size()), [&](int64_t i) {
      statuses[static_cast<size_t>(i)] = pitch::run(params[static_cast<size_t>(i)]);
    });
  }
  for (const Status& status : statuses) raise_if_error(status);
}

std::unique_ptr<pitch::Stream> make_stream(const pitch::Settings& settings) {
  std::unique_ptr<pitch::Stream> stream;
  raise_if_error(pitch::Stream::create(Device::kCpu, settings, &stream));
  return stream;
}

// A stream has one owner; the GIL, kept, makes it safe to share one by mistake.
void push(pitch::Stream& stream, const Input<float, 1>& pcm) {
  raise_if_error(stream.push(data_of("pitch", "pcm", pcm), static_cast<int64_t>(pcm.shape(0))));
}

void read(pitch::Stream& stream, const Output<float, 2>& out) {
  if (out.shape(0) != 3)
    raise_if_error(invalid_argument("pitch", "out", "3 rows", std::to_string(out.shape(0))));
  const auto frames = static_cast<int64_t>(out.shape(1));
  float* f0 = data_of("pitch", "out", out);
  raise_if_error(stream.read(frames, f0, f0 + frames, f0 + 2 * frames));
}

// Writes the frames of the nuclei to at [frames]; returns their number and the seconds of speaking.
std::pair<int64_t, double> nuclei(const Input<float, 1>& energy, const Input<float, 1>& f0,
                                  const Output<int64_t, 1>& at) {
  const auto frames = static_cast<int64_t>(energy.shape(0));
  if (static_cast<int64_t>(f0.shape(0)) != frames || static_cast<int64_t>(at.shape(0)) != frames) {
    raise_if_error(invalid_argument("pitch", "f0", std::to_string(frames) + " frames, as energy has",
                                    std::to_string(f0.shape(0))));
  }
  pitch::Speech speech;
  raise_if_error(pitch::find_nuclei(data_of("pitch", "energy", energy), data_of("pitch", "f0", f0), frames,
                                    data_of("pitch", "at", at), &speech));
  return {speech.nuclei, speech.seconds};
}

}  // namespace

void bind_pitch(nb::module_& module) {
  nb::class_<pitch::Settings>(module, "PitchSettings")
      .def(nb::new_(&settings_of), nb::arg("f0_min"), nb::arg("f0_max"), nb::arg("voicing_threshold"),
           nb::arg("silence_threshold"));
  module.def("pitch", &run<&pitch::run>, nb::arg("pcm").noconvert(), nb::arg("settings"),
             nb::arg("out").noconvert());
  module.def("pitch_reference", &run<&pitch::reference>, nb::arg("pcm").noconvert(), nb::arg("settings"),
             nb::arg("out").noconvert());
  module.def("pitch_batch", &run_batch, nb::arg("clips"), nb::arg("settings"), nb::arg("out"));
  module.def("pitch_nuclei", &nuclei, nb::arg("energy").noconvert(), nb::arg("f0").noconvert(),
             nb::arg("at").noconvert());
  module.def("pitch_which", [] {
    std::string name;
    raise_if_error(pitch::which(Device::kCpu, &name));
    return name;
  });
  nb::class_<pitch::Stream>(module, "PitchStream")
      .def(nb::new_(&make_stream), nb::arg("settings"))
      .def("push", &push, nb::arg("pcm").noconvert())
      .def("finish", [](pitch::Stream& stream) { raise_if_error(stream.finish()); })
      .def("ready", &pitch::Stream::ready)
      .def("read", &read, nb::arg("out").noconvert());
}

}  // namespace earnest::bindings
