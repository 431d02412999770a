// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "csrc/engine/guard.h"
#include "csrc/engine/safetensors.h"

namespace earnest::engine {

Status Model::load(const std::string& folder, Precision precision, std::shared_ptr<Model>* model,
                   Quantization quantization) {
  Config config;
  Tensors tensors;
  EARNEST_RETURN_IF_ERROR(Config::load(folder, &config));
  EARNEST_RETURN_IF_ERROR(read_checkpoint(folder, &tensors));
  return create(config, std::move(tensors), precision, model, quantization);
}

Status Model::create(const Config& config, Tensors tensors, Precision precision,
                     std::shared_ptr<Model>* model, Quantization quantization) {
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
  return guarded("load", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_tensors(config, tensors));
    if (config.text.tie_word_embeddings) EARNEST_RETURN_IF_ERROR(check_tied(tensors));
    std::shared_ptr<Model> made(new Model(config, std::move(tensors), precision, quantization));
    EARNEST_RETURN_IF_ERROR(made->encoder_.create(config.audio, &made->weights_));
    EARNEST_RETURN_IF_ERROR(made->adaptor_.create(config.audio, &made->weights_));
    EARNEST_RETURN_IF_ERROR(made->decoder_.create(config.text, &made->weights_));
    EARNEST_RETURN_IF_ERROR(made->head_.create(config.text, &made->weights_));
    made->weights_.let_files_go();
    *model = std::move(made);
    return {};
  });
}

Status Model::hear(const float* mel, int64_t frames, void* embeddings, Arena* arena) const {
  if (precision() == Precision::kMixed) {
    return unsupported("encoder", "precision", "float32 or bfloat16", "mixed, which decodes alone");
  }
  return guarded("encoder", [&]() -> Status {
    const Arena::Scope scope(arena);
    const int64_t kept = config_.audio.kept_frames(std::max<int64_t>(frames, 0));
    const auto size = static_cast<int64_t>(size_of(precision()));
    char* heard = arena->take<char>(kept * config_.audio.n_audio_state * size);
    EARNEST_RETURN_IF_ERROR(encoder_.run(mel, frames, heard, arena));
    return adaptor_.run(heard, kept, embeddings, arena);
  });
}

Status Model::refresh() {
  EARNEST_RETURN_IF_ERROR(weights_.refresh());
  return head_.refresh();
}

Status Model::forward(const std::vector<Segment>& segments, void* hidden, Arena* arena) const {
  return guarded("decoder", [&] { return decoder_.run(segments, hidden, arena); });
}

Status Model::logits(const void* hidden, int64_t rows, float* logits, Arena* arena) const {
  return guarded("logits", [&] { return head_.logits(hidden, rows, logits, arena); });
}

Status Model::scores(const void* hidden, int64_t rows, float* logits, logprob::RowNorm* norms,
                     Arena* arena) const {
  return guarded("logits", [&] { return head_.scores(hidden, rows, logits, norms, arena); });
}

Status Model::logprob(const void* hidden, int64_t rows, const int64_t* targets, double temperature,
                      float* logp, float* entropy, Arena* arena) const {
  return guarded("logprob",
                 [&] { return head_.logprob(hidden, rows, targets, temperature, logp, entropy, arena); });
}

}  // namespace earnest::engine
