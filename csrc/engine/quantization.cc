// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/quantization.h"

#include <utility>

#include "csrc/engine/guard.h"

namespace earnest::engine {

QuantizedTensors quantized_tensors(const TextConfig& config, Quantization quantization) {
  QuantizedTensors tensors;
  if (quantization == Quantization::kNone) return tensors;
  const auto codes = quantization == Quantization::kInt8 ? quantized::Codes::kInt8 : quantized::Codes::kInt4;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      tensors.emplace(layer + name + ".weight", codes);
    }
  }
  tensors.emplace(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                  quantized::Codes::kInt8);
  return tensors;
}

quantized::Activations activations_of(const std::string& name, quantized::Type type) {
  if (type == quantized::Type::kFloat32) return quantized::Activations::kExact;
  const bool bears = name.find(".mlp.") != std::string::npos || name.find(".o_proj.") != std::string::npos;
  return bears ? quantized::Activations::kInt8 : quantized::Activations::kExact;
}

std::vector<int64_t> packed_shape(const std::vector<int64_t>& shape, quantized::Codes codes) {
  const quantized::Shape matrix = {codes, shape[0], shape[1]};
  return {quantized::panels(matrix), quantized::panel_bytes(matrix)};
}

Status pack_tensor(const TensorView& view, quantized::Codes codes, void* packed) {
  const quantized::Shape shape = {codes, view.shape[0], view.shape[1]};
  if (view.type == StoredType::kBFloat16)
    return quantized::pack(shape, quantized::Type::kBFloat16, view.data, packed);
  if (view.type == StoredType::kFloat32)
    return quantized::pack(shape, quantized::Type::kFloat32, view.data, packed);
  std::vector<float> widened(static_cast<size_t>(view.count()));
  read(view, 0, view.count(), widened.data());
  return quantized::pack(shape, quantized::Type::kFloat32, widened.data(), packed);
}

}  // namespace earnest::engine
