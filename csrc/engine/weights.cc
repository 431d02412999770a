// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/weights.h"

#include <utility>

#include "csrc/engine/guard.h"
#include "csrc/engine/json.h"
#include "csrc/engine/packed_matrix.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

constexpr int64_t kAdaptorWidth = 2048;  // between its two linear layers, the same in every published model
constexpr char kHead[] = "lm_head.weight";

using Shapes = std::map<std::string, std::vector<int64_t>>;

void add_encoder(const EncoderConfig& audio, Shapes* shapes) {
  const int64_t width = audio.n_audio_state;
  const auto linear = [&](const std::string& name, int64_t outputs, int64_t inputs, bool bias) {
    (*shapes)[name + ".weight"] = {outputs, inputs};
    if (bias) (*shapes)[name + ".bias"] = {outputs};
  };
  const auto vectors = [&](const std::string& name) {
    (*shapes)[name + ".weight"] = (*shapes)[name + ".bias"] = {width};
  };
  (*shapes)["encoder.conv1.weight"] = {width, audio.n_mels, 3};
  (*shapes)["encoder.conv2.weight"] = (*shapes)["adapter.conv.weight"] = {width, width, 3};
  for (const char* name : {"encoder.conv1.bias", "encoder.conv2.bias", "adapter.conv.bias"}) {
    (*shapes)[name] = {width};
  }
  (*shapes)["encoder.positional_embedding.weight"] = {audio.n_audio_ctx, width};
  for (int64_t i = 0; i < audio.n_audio_layer; ++i) {
    const std::string block = "encoder.blocks." + std::to_string(i) + ".";
    vectors(block + "attn_ln");
    vectors(block + "mlp_ln");
    linear(block + "attn.query", width, width, true);
    linear(block + "attn.key", width, width, false);
    linear(block + "attn.value", width, width, true);
    linear(block + "attn.out", width, width, true);
    linear(block + "mlp.0", 4 * width, width, true);
    linear(block + "mlp.2", width, 4 * width, true);
  }
  vectors("encoder.after_norm");
  linear("adapter.linear1", kAdaptorWidth, width, true);
  linear("adapter.linear2", audio.llm_dim, kAdaptorWidth, true);
}

void add_decoder(const TextConfig& text, Shapes* shapes) {
  const int64_t width = text.hidden_size, inner = text.intermediate_size, dim = text.head_dim();
  (*shapes)["model.embed_tokens.weight"] = (*shapes)[kHead] = {text.vocab_size, width};
  (*shapes)["model.norm.weight"] = {width};
  for (int64_t i = 0; i < text.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    (*shapes)[layer + "input_layernorm.weight"] = {width};
    (*shapes)[layer + "post_attention_layernorm.weight"] = {width};
    for (const char* part : {"q", "k", "v"}) {
      const std::string name = layer + "self_attn." + part + "_proj";
      const int64_t heads = *part == 'q' ? text.num_attention_heads : text.num_key_value_heads;
      (*shapes)[name + ".weight"] = {heads * dim, width};
      (*shapes)[name + ".bias"] = {heads * dim};
    }
    (*shapes)[layer + "self_attn.o_proj.weight"] = {width, width};
    (*shapes)[layer + "mlp.gate_proj.weight"] = (*shapes)[layer + "mlp.up_proj.weight"] = {inner, width};
    (*shapes)[layer + "mlp.down_proj.weight"] = {width, inner};
  }
}

// Names, the first of them in full: a hostile file may have a million.
class Listing {
 public:
  void add(const std::string& what) {
    constexpr size_t kMostShown = 100, kMostLength = 200;
    if (count_++ >= kMostShown) return;
    text_ += (text_.empty() ? "" : ", ") + shortened(what, kMostLength);
  }
  bool empty() const { return count_ == 0; }
  std::string text(const std::string& kind) const {
    return empty() ? "" : std::to_string(count_) + " " + kind + " (" + text_ + ")";
  }

 private:
  size_t count_ = 0;
  std::string text_;
};

}  // namespace

Shapes tensor_shapes(const Config& config) {
  Shapes shapes;
  add_encoder(config.audio, &shapes);
  add_decoder(config.text, &shapes);
  return shapes;
}

Status check_tensors(const Config& config, const Tensors& tensors) {
  const Shapes shapes = tensor_shapes(config);
  Listing missing, extra, wrong;
  for (const auto& [name, shape] : shapes) {
    const auto found = tensors.views.find(name);
    if (found == tensors.views.end()) {
      if (name != kHead || !config.text.tie_word_embeddings) missing.add(name);
    } else if (found->second.shape != shape) {
      wrong.add(name + " " + shape_text(found->second.shape) + " instead of " + shape_text(shape));
    }
  }
  for (const auto& [name, view] : tensors.views) {
    if (shapes.count(name) == 0) extra.add(json::quoted(name));
  }
  if (missing.empty() && extra.empty() && wrong.empty()) return {};
  std::string got;
  for (const std::string& part :
       {missing.text("missing"), extra.text("that it has not"), wrong.text("of another shape")}) {
    if (!part.empty()) got += (got.empty() ? "" : "; ") + part;
  }
  return {StatusCode::kCorrupt, "[load] tensors: expected those of the config, got " + got};
}

Status Weights::matrix(const MatrixNames& names, const Matrix** matrix) {
  const bool mixed = precision_ == Precision::kMixed;
  return add_matrix(names, mixed ? Precision::kBFloat16 : precision_, matrix);
}

Status Weights::head_matrix(const std::string& name, const Matrix** matrix) {
  const bool mixed = precision_ == Precision::kMixed;
  return add_matrix({{name}, {}}, mixed ? Precision::kFloat32 : precision_, matrix);
}

Status Weights::add_matrix(const MatrixNames& names, Precision precision, const Matrix** matrix) {
  std::vector<TensorView> weights, biases;
  for (const std::string& name : names.weights) weights.push_back(view(name));
  for (const std::string& name : names.biases) biases.push_back(name.empty() ? TensorView() : view(name));
  auto made = std::make_unique<PackedMatrix>(std::move(weights), std::move(biases), precision);
  EARNEST_RETURN_IF_ERROR(made->refresh());
  *matrix = made.get();
  matrices_.push_back(std::move(made));
  return {};
}

Status Weights::array(const std::string& name, const Array** array) {
  auto made = std::make_unique<Array>();
  made->source_ = view(name);
  EARNEST_RETURN_IF_ERROR(read(made.get()));
  *array = made.get();
  arrays_.push_back(std::move(made));
  return {};
}

Status Weights::read(Array* array) const {
  const TensorView& source = array->source_;
  const bool float32 = precision_ != Precision::kBFloat16;
  const bool same = source.type == (float32 ? StoredType::kFloat32 : StoredType::kBFloat16);
  if (same && reinterpret_cast<uintptr_t>(source.data) % size_of(precision_) == 0) {
    array->data_ = source.data;
    return {};
  }
  array->copy_.resize(static_cast<size_t>(source.count()) * size_of(precision_));
  array->data_ = array->copy_.data();
  if (float32) {
    engine::read(source, 0, source.count(), reinterpret_cast<float*>(array->copy_.data()));
  } else {
    engine::read(source, 0, source.count(), reinterpret_cast<BFloat16*>(array->copy_.data()));
  }
  return {};
}

Status Weights::refresh() {
  return guarded("refresh", [&]() -> Status {
    for (const auto& array : arrays_) EARNEST_RETURN_IF_ERROR(read(array.get()));
    for (const auto& matrix : matrices_) EARNEST_RETURN_IF_ERROR(matrix->refresh());
    return {};
  });
}

size_t Weights::bytes() const {
  size_t total = 0;
  for (const auto& matrix : matrices_) total += matrix->bytes();
  for (const auto& array : arrays_) total += array->copy_.size();
  return total;
}

}  // namespace earnest::engine
