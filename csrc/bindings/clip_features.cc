// SPDX-License-Identifier: Apache-2.0
// A clip in pieces as the engine takes it, for the tests.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <utility>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/engine/features.h"
#include "csrc/engine/place.h"

namespace earnest::bindings {
namespace {

using namespace nb::literals;

// Chunks as (samples, mel [frames * n_mels]), for cuda as (samples, pcm).
using Chunks = std::vector<std::pair<int64_t, std::vector<float>>>;

Chunks taken(const std::vector<engine::Chunk>& closed) {
  Chunks chunks;
  for (const engine::Chunk& chunk : closed) {
    const auto& numbers = chunk.mel.empty() ? chunk.pcm : chunk.mel;
    chunks.emplace_back(chunk.samples, std::vector<float>(numbers.begin(), numbers.end()));
  }
  return chunks;
}

Chunks push(engine::ClipFeatures& features, const Input<float, 1>& pcm) {
  std::vector<engine::Chunk> closed;
  raise_if_error(features.push(pcm.data(), static_cast<int64_t>(pcm.shape(0)), &closed));
  return taken(closed);
}

Chunks finish(engine::ClipFeatures& features) {
  std::vector<engine::Chunk> closed;
  raise_if_error(features.finish(&closed));
  return taken(closed);
}

std::unique_ptr<engine::ClipFeatures> make_features(int64_t n_mels, const std::string& device) {
  engine::Place place;
  raise_if_error(engine::read_place(device, &place));
  std::unique_ptr<engine::ClipFeatures> features;
  raise_if_error(engine::ClipFeatures::create(n_mels, place.device, &features));
  return features;
}

}  // namespace

void bind_clip_features(nb::module_& module) {
  nb::class_<engine::ClipFeatures>(module, "ClipFeatures")
      .def(nb::new_(&make_features), "n_mels"_a, "device"_a = "cpu")
      .def("push", &push, "pcm"_a.noconvert())
      .def("finish", &finish);
}

}  // namespace earnest::bindings
