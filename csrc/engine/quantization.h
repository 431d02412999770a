// SPDX-License-Identifier: Apache-2.0
// Which matrices of a model are kept as int8 or int4, and the files that have them so.
//
// kInt8: the matrices of the decoder's layers and the output matrix (and with it the embedding table, where
// they are one), a scale for each output. kInt4: the layers' in groups of 32, the output matrix as int8: it
// is read by every token that is drawn, and the likeliest words differ by little. Encoder and adaptor are as
// they were: their work is arithmetic, not reading, and they are small.
//
// A saved checkpoint is one model.safetensors. A quantised matrix stands under its own name as U8 [panels,
// bytes of a panel], as kernels/quantized lays it out, and is copied to huge pages at load; all other tensors
// are as they were. config.json says so:
//   "quantization_config": {"quant_method": "earnest", "weights": "int8" or "int4", "version": 1}
#pragma once

#include <map>
#include <string>
#include <vector>

#include "csrc/engine/config.h"
#include "csrc/engine/tensor.h"
#include "kernels/common/status.h"
#include "kernels/quantized/quantized.h"

namespace earnest::engine {

// Of each tensor that is kept in codes: which ones. The shapes are those of tensor_shapes().
using QuantizedTensors = std::map<std::string, quantized::Codes>;
QuantizedTensors quantized_tensors(const TextConfig& config, Quantization quantization);

// How exactly the input of a matrix is multiplied with its codes. In bfloat16 feed-forward layers and what
// follows attention bear 8 bits, which takes about half the time; queries, keys and words that are drawn do
// not (kernels/quantized/README.md says what each costs in perplexity). float32 is always exact.
quantized::Activations activations_of(const std::string& name, quantized::Type type);

// The shape of a tensor [outputs, inputs] in a saved file.
std::vector<int64_t> packed_shape(const std::vector<int64_t>& shape, quantized::Codes codes);

// Quantises a tensor [outputs, inputs] as Model::load would. May throw std::bad_alloc.
Status pack_tensor(const TensorView& view, quantized::Codes codes, void* packed);

// Reads a checkpoint folder and writes it quantised into a new one: model.safetensors, config.json, and the
// other files (a tokenizer's) as they are. `out` must not exist yet; what was begun is removed on failure.
Status quantize_checkpoint(const std::string& in, const std::string& out, Quantization quantization);

}  // namespace earnest::engine
