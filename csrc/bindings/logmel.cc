// SPDX-License-Identifier: Apache-2.0
#include "kernels/logmel/logmel.h"

#include <nanobind/stl/unique_ptr.h>

#include <cstdint>
#include <memory>
#include <string>

#include "csrc/bindings/bindings.h"

namespace earnest::bindings {
namespace {

using logmel::Padding;

Padding padding_of(bool step_audio) { return step_audio ? Padding::kStepAudio : Padding::kWhisper; }

void check_shape(const Output<float, 2>& out, int64_t n_mels, int64_t frames) {
  if (static_cast<int64_t>(out.shape(0)) == n_mels && static_cast<int64_t>(out.shape(1)) == frames) return;
  const auto shape = [](int64_t rows, int64_t columns) {
    return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
  };
  const auto rows = static_cast<int64_t>(out.shape(0)), columns = static_cast<int64_t>(out.shape(1));
  raise_if_error(invalid_argument("logmel", "out", shape(n_mels, frames), shape(rows, columns)));
}

template <Status (*kRun)(const logmel::Params&)>
void run(const Input<float, 1>& pcm, const Output<float, 2>& out, bool step_audio) {
  logmel::Params params;
  params.pcm = data_of("logmel", "pcm", pcm);
  params.samples = static_cast<int64_t>(pcm.shape(0));
  params.n_mels = static_cast<int>(out.shape(0));
  params.padding = padding_of(step_audio);
  params.out = data_of("logmel", "out", out);
  check_shape(out, params.n_mels, logmel::frame_count(params.samples, params.padding));
  Status status;
  {
    nb::gil_scoped_release release;
    status = kRun(params);
  }
  raise_if_error(status);
}

void normalize(const Input<float, 2>& raw, const Output<float, 2>& out) {
  check_shape(out, static_cast<int64_t>(raw.shape(0)), static_cast<int64_t>(raw.shape(1)));
  const auto count = static_cast<int64_t>(raw.size());
  const float* from = data_of("logmel", "raw", raw);
  float* to = data_of("logmel", "out", out);
  Status status;
  {
    nb::gil_scoped_release release;
    status = logmel::normalize(Device::kCpu, from, count, to);
  }
  raise_if_error(status);
}

std::unique_ptr<logmel::Stream> make_stream(int n_mels, bool step_audio) {
  std::unique_ptr<logmel::Stream> stream;
  raise_if_error(logmel::Stream::create(Device::kCpu, n_mels, padding_of(step_audio), &stream));
  return stream;
}

// A stream has one owner; the GIL, kept, makes it safe to share one by mistake.
// Pushes and reads in one call, for out of exactly the frames that the chunk makes ready.
void push(logmel::Stream& stream, const Input<float, 1>& pcm, const Output<float, 2>& out) {
  const auto samples = static_cast<int64_t>(pcm.shape(0));
  check_shape(out, stream.n_mels(), stream.ready(samples));
  float* to = data_of("logmel", "out", out);
  raise_if_error(stream.push(data_of("logmel", "pcm", pcm), samples));
  raise_if_error(stream.read(static_cast<int64_t>(out.shape(1)), to));
}

void read(logmel::Stream& stream, const Output<float, 2>& out) {
  check_shape(out, stream.n_mels(), static_cast<int64_t>(out.shape(1)));
  raise_if_error(stream.read(static_cast<int64_t>(out.shape(1)), data_of("logmel", "out", out)));
}

}  // namespace

void bind_logmel(nb::module_& module) {
  module.def(
      "logmel_frames",
      [](int64_t samples, bool step_audio) { return logmel::frame_count(samples, padding_of(step_audio)); },
      nb::arg("samples"), nb::arg("step_audio"));
  module.def("logmel", &run<&logmel::run>, nb::arg("pcm").noconvert(), nb::arg("out").noconvert(),
             nb::arg("step_audio"));
  module.def("logmel_reference", &run<&logmel::reference>, nb::arg("pcm").noconvert(),
             nb::arg("out").noconvert(), nb::arg("step_audio"));
  module.def("logmel_normalize", &normalize, nb::arg("raw").noconvert(), nb::arg("out").noconvert());
  module.def(
      "logmel_which",
      [](const std::string& device) {
        std::string name;
        raise_if_error(logmel::which(device == "cuda" ? Device::kCuda : Device::kCpu, &name));
        return name;
      },
      nb::arg("device"));
  nb::class_<logmel::Stream>(module, "LogMelStream")
      .def(nb::new_(&make_stream), nb::arg("n_mels"), nb::arg("step_audio"))
      .def("push", &push, nb::arg("pcm").noconvert(), nb::arg("out").noconvert())
      .def("finish", [](logmel::Stream& stream) { raise_if_error(stream.finish()); })
      .def("ready", &logmel::Stream::ready, nb::arg("more") = 0)
      .def("pushed", &logmel::Stream::pushed)
      .def("read", &read, nb::arg("out").noconvert());
}

}  // namespace earnest::bindings
