// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/model.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "csrc/engine/guard.h"
#include "csrc/engine/safetensors.h"

namespace earnest::engine {

namespace {

// What the kernels on a GPU can compute with.
Status check_on(const Place& place, const Config& config, Precision precision) {
  if (place.device == Device::kCpu) return {};
  EARNEST_RETURN_IF_ERROR(check_place(place));
  if (precision != Precision::kBFloat16) {
    return unsupported("load", "precision", "bfloat16 on cuda",
                       precision == Precision::kFloat32 ? "float32" : "mixed");
  }
  for (const auto& [heads, dim] : {std::pair{"decoder's heads", config.text.head_dim()},
                                   std::pair{"encoder's heads", config.audio.head_dim()}}) {
    if (dim == 64 || dim == 128) continue;
    return unsupported("load", heads, "a size of 64 or 128 on cuda", std::to_string(dim));
  }
  return {};
}

// Tensors on a GPU are taken as they are, for a model there.
Status check_where(const Tensors& tensors, Device device) {
  for (const auto& [name, view] : tensors.views) {
    if (view.device == Device::kCuda && device == Device::kCpu)
      return invalid_argument("load", name, "memory of the host for a model on cpu", "memory on cuda");
  }
  return {};
}

// body() where the place is current.
template <typename Body>
Status at(const Place& place, const char* op, const Body& body) {
  const CurrentPlace current(place);
  EARNEST_RETURN_IF_ERROR(current.status());
  return guarded(op, body);
}

}  // namespace

Status Model::load(const std::string& folder, Precision precision, std::shared_ptr<Model>* model,
                   Quantization quantization, const Place& place, Products products) {
  Config config;
  Tensors tensors;
  EARNEST_RETURN_IF_ERROR(Config::load(folder, &config));
  EARNEST_RETURN_IF_ERROR(read_checkpoint(folder, &tensors));
  return create(config, std::move(tensors), precision, model, quantization, place, products);
}

Status Model::create(const Config& config, Tensors tensors, Precision precision,
                     std::shared_ptr<Model>* model, Quantization quantization, const Place& place,
                     Products products) {
  const bool saved_so = config.quantization != Quantization::kNone;
  if (saved_so && quantization != Quantization::kNone && quantization != config.quantization) {
    return invalid_argument("load", "quantization",
                            name_of(config.quantization) + std::string(" as it is saved"),
                            name_of(quantization));
  }
  if (saved_so) quantization = config.quantization;
  if (quantization != Quantization::kNone && precision == Precision::kMixed) {
    return unsupported("load", "precision", "float32 or bfloat16 with quantised weights", "mixed");
  }
  EARNEST_RETURN_IF_ERROR(check_on(place, config, precision));
  EARNEST_RETURN_IF_ERROR(check_products(products, place));
  EARNEST_RETURN_IF_ERROR(check_where(tensors, place.device));
  return at(place, "load", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_tensors(config, tensors));
    if (config.text.tie_word_embeddings) EARNEST_RETURN_IF_ERROR(check_tied(tensors));
    std::shared_ptr<Model> made(
        new Model(config, std::move(tensors), precision, quantization, place, products));
    EARNEST_RETURN_IF_ERROR(made->encoder_.create(config.audio, &made->weights_));
    EARNEST_RETURN_IF_ERROR(made->adaptor_.create(config.audio, &made->weights_));
    EARNEST_RETURN_IF_ERROR(made->decoder_.create(config.text, &made->weights_));
    EARNEST_RETURN_IF_ERROR(made->head_.create(config.text, &made->weights_));
    made->weights_.let_files_go();
    *model = std::move(made);
    return {};
  });
}

Status Model::hear(const Sound& sound, void* embeddings, Arena* arena) const {
  if (precision() == Precision::kMixed) {
    return unsupported("encoder", "precision", "float32 or bfloat16", "mixed, which decodes alone");
  }
  return at(place(), "encoder", [&]() -> Status {
    Arena* const there = arena->on(device());
    const Arena::Scope scope(there);
    const int64_t kept = config_.audio.kept_frames(std::max<int64_t>(sound.frames, 0));
    const auto size = static_cast<int64_t>(size_of(precision()));
    char* heard = there->take<char>(kept * config_.audio.n_audio_state * size);
    EARNEST_RETURN_IF_ERROR(encoder_.run(sound, heard, there));
    if (device() == Device::kCpu) return adaptor_.run(heard, kept, embeddings, there);
    const int64_t bytes = config_.audio.audio_tokens(sound.frames) * config_.text.hidden_size * size;
    char* out = there->take<char>(bytes);
    EARNEST_RETURN_IF_ERROR(adaptor_.run(heard, kept, out, there));
    return copy("encoder", device(), embeddings, out, static_cast<size_t>(bytes));
  });
}

Status Model::refresh() {
  ++refreshed_;
  return at(place(), "load", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(weights_.refresh());
    return head_.refresh();
  });
}

Status Model::forward(const std::vector<Segment>& segments, void* hidden, Arena* arena) const {
  return at(place(), "decoder", [&] { return decoder_.run(segments, hidden, arena->on(device())); });
}

Status Model::logits(const void* hidden, int64_t rows, float* logits, Arena* arena,
                     std::span<Drawing> drawings) const {
  return at(place(), "logits", [&] { return head_.logits(hidden, rows, logits, arena, drawings); });
}

Status Model::decode(const std::vector<Segment>& segments, std::span<Drawing> drawings, void* hidden,
                     float* logits, Arena* arena, DecodeGraphs* graphs) const {
  if (device() == Device::kCuda && DecodeGraphs::can_take(segments))
    return at(place(), "decoder",
              [&] { return graphs->run({decoder_, head_, refreshed_}, segments, drawings, hidden, logits); });
  EARNEST_RETURN_IF_ERROR(forward(segments, hidden, arena));
  return this->logits(hidden, static_cast<int64_t>(segments.size()), logits, arena, drawings);
}

Status Model::scores(const void* hidden, int64_t rows, float* logits, logprob::RowNorm* norms,
                     Arena* arena) const {
  return at(place(), "logits", [&] { return head_.scores(hidden, rows, logits, norms, arena); });
}

Status Model::logprob(const void* hidden, int64_t rows, const int64_t* targets, double temperature,
                      float* logp, float* entropy, Arena* arena) const {
  return at(place(), "logprob",
            [&] { return head_.logprob(hidden, rows, targets, temperature, logp, entropy, arena); });
}

}  // namespace earnest::engine
