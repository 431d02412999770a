// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "csrc/engine/device_matrix.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/json.h"
#include "csrc/engine/packed_matrix.h"
#include "csrc/engine/quantization.h"
#include "csrc/engine/quantized_matrix.h"
#include "csrc/engine/utf8.h"
#include "kernels/common/thread_pool.h"

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

constexpr int64_t kPart = 4096;  // numbers that are compared at a time

// Numbers from `first` on have the same values in two tensors of one shape.
bool part_agrees(const TensorView& one, const TensorView& other, int64_t first) {
  const int64_t count = std::min(kPart, one.count() - first);
  if (one.type == other.type) {
    const size_t skipped = static_cast<size_t>(first) * size_of(one.type);
    return std::memcmp(static_cast<const char*>(one.data) + skipped,
                       static_cast<const char*>(other.data) + skipped,
                       static_cast<size_t>(count) * size_of(one.type)) == 0;
  }
  float ours[kPart], theirs[kPart];
  read(one, first, count, ours);
  read(other, first, count, theirs);
  return std::memcmp(ours, theirs, static_cast<size_t>(count) * sizeof(float)) == 0;
}

}  // namespace

Shapes tensor_shapes(const Config& config) {
  Shapes shapes;
  add_encoder(config.audio, &shapes);
  add_decoder(config.text, &shapes);
  return shapes;
}

Status check_tensors(const Config& config, const Tensors& tensors) {
  const Shapes shapes = tensor_shapes(config);
  const QuantizedTensors quantized = quantized_tensors(config.text, config.quantization);
  Listing missing, extra, wrong;
  for (const auto& [name, shape] : shapes) {
    const auto found = tensors.views.find(name);
    if (found == tensors.views.end()) {
      if (name != kHead || !config.text.tie_word_embeddings) missing.add(name);
      continue;
    }
    const TensorView& view = found->second;
    const auto codes = quantized.find(name);
    const bool in_codes = codes != quantized.end();
    const auto wanted = in_codes ? packed_shape(shape, codes->second) : shape;
    if (view.shape != wanted) {
      wrong.add(name + " " + shape_text(view.shape) + " instead of " + shape_text(wanted));
    } else if ((view.type == StoredType::kBytes) != in_codes) {
      wrong.add(name + " of type " + name_of(view.type) + " instead of " + (in_codes ? "U8" : "numbers"));
    }
  }
  for (const auto& [name, view] : tensors.views) {
    if (shapes.count(name) == 0) extra.add(json::quoted(name));
  }
  if (missing.empty() && extra.empty() && wrong.empty()) return {};
  std::string got;
  for (const std::string& part :
       {missing.text("missing"), extra.text("that it has not"), wrong.text("of another shape or type")}) {
    if (!part.empty()) got += (got.empty() ? "" : "; ") + part;
  }
  return {StatusCode::kCorrupt, "[load] tensors: expected those of the config, got " + got};
}

Status check_tied(const Tensors& tensors) {
  const auto found = tensors.views.find(kHead);
  if (found == tensors.views.end()) return {};
  const TensorView &head = found->second, &table = tensors.views.at("model.embed_tokens.weight");
  if (head.data == table.data) return {};
  if (head.device == Device::kCuda || table.device == Device::kCuda)
    return corrupt(head.file, std::string("tensor \"") + kHead + '"',
                   "the memory of model.embed_tokens.weight (tied)", "other memory");
  const int64_t parts = (head.count() + kPart - 1) / kPart;
  std::atomic<bool> same{true};
  parallel_for(parts, [&](int64_t part) {
    if (same && !part_agrees(head, table, part * kPart)) same = false;
  });
  let_go(head);
  if (same) return {};
  return corrupt(head.file, std::string("tensor \"") + kHead + '"',
                 "the values of model.embed_tokens.weight (tied)", "others");
}

Status Table::copy_row(int64_t index, void* out) const {
  if (matrix_ != nullptr) return matrix_->row(index, out);
  std::memcpy(out, static_cast<const char*>(array_->data()) + static_cast<size_t>(index) * row_bytes_,
              row_bytes_);
  return {};
}

Weights::Weights(Tensors tensors, Precision precision, const Config& config, Quantization quantization,
                 const Place& place, Products products)
    : tensors_(std::move(tensors)),
      precision_(precision),
      place_(place),
      products_(products),
      shapes_(tensor_shapes(config)),
      quantized_(quantized_tensors(config.text, quantization)) {}
Weights::~Weights() = default;

bool Weights::is_quantized(const std::string& name) const { return quantized_.count(name) > 0; }

Status Weights::matrix(const MatrixNames& names, const Matrix** matrix) {
  const bool mixed = precision_ == Precision::kMixed;
  return add_matrix(names, mixed ? Precision::kBFloat16 : precision_, matrix);
}

Status Weights::head_matrix(const std::string& name, const Matrix** matrix) {
  const bool mixed = precision_ == Precision::kMixed;
  return add_matrix({{name}, {}}, mixed ? Precision::kFloat32 : precision_, matrix);
}

Status Weights::add_matrix(const MatrixNames& names, Precision precision, const Matrix** matrix) {
  if (is_quantized(names.weights[0])) {
    const QuantizedMatrix* made = nullptr;
    EARNEST_RETURN_IF_ERROR(quantized_matrix(names, device(), &made));
    *matrix = made;
    return {};
  }
  if (device() == Device::kCuda) return device_matrix(names, precision, matrix);
  std::vector<TensorView> weights, biases;
  for (const std::string& name : names.weights) weights.push_back(view(name));
  for (const std::string& name : names.biases) biases.push_back(name.empty() ? TensorView() : view(name));
  MatrixRows rows(std::move(weights), std::move(biases), precision);
  auto made = std::make_unique<PackedMatrix>(std::move(rows), &memory_);
  EARNEST_RETURN_IF_ERROR(made->refresh());
  *matrix = made.get();
  matrices_.push_back(std::move(made));
  return {};
}

Status Weights::device_matrix(const MatrixNames& names, Precision precision, const Matrix** matrix) {
  std::vector<DeviceMatrix::Piece> pieces(names.weights.size());
  int64_t inputs = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const std::string& name = names.weights[i];
    const TensorView& weight = view(name);
    pieces[i].outputs = weight.shape[0];
    inputs = weight.count() / weight.shape[0];
    EARNEST_RETURN_IF_ERROR(array(name, &pieces[i].weight));
    const bool has_bias = i < names.biases.size() && !names.biases[i].empty();
    if (has_bias) EARNEST_RETURN_IF_ERROR(array(names.biases[i], &pieces[i].bias));
  }
  auto made = std::make_unique<DeviceMatrix>(std::move(pieces), inputs, type_of(precision), products_);
  *matrix = made.get();
  matrices_.push_back(std::move(made));
  return {};
}

Status Weights::quantized_matrix(const MatrixNames& names, Device device, const QuantizedMatrix** matrix) {
  const auto known = quantized_matrices_.find({names.weights[0], device});
  if (known != quantized_matrices_.end()) {
    *matrix = known->second;
    return {};
  }
  std::vector<TensorView> weights, biases;
  std::vector<std::vector<int64_t>> shapes;
  for (const std::string& name : names.weights) {
    weights.push_back(view(name));
    shapes.push_back(shapes_.at(name));
  }
  for (const std::string& name : names.biases) biases.push_back(name.empty() ? TensorView() : view(name));
  const std::string& first = names.weights[0];
  const auto type =
      precision_ == Precision::kFloat32 ? quantized::Type::kFloat32 : quantized::Type::kBFloat16;
  auto made =
      std::make_unique<QuantizedMatrix>(std::move(weights), shapes, std::move(biases), quantized_.at(first),
                                        activations_of(first, type), type, &memory_, device);
  EARNEST_RETURN_IF_ERROR(made->refresh());
  *matrix = made.get();
  quantized_matrices_.emplace(Where(first, device), made.get());
  matrices_.push_back(std::move(made));
  return {};
}

Status Weights::table(const std::string& name, const Table** table) {
  auto made = std::make_unique<Table>();
  if (is_quantized(name)) {
    EARNEST_RETURN_IF_ERROR(quantized_matrix({{name}, {}}, Device::kCpu, &made->matrix_));
  } else {
    EARNEST_RETURN_IF_ERROR(array(name, &made->array_));
    made->row_bytes_ = static_cast<size_t>(shapes_.at(name)[1]) * size_of(precision_);
  }
  *table = made.get();
  tables_.push_back(std::move(made));
  return {};
}

Status Weights::array(const std::string& name, const Array** array) {
  std::unique_ptr<Array>& known = arrays_[name];
  if (known == nullptr) {
    auto made = std::make_unique<Array>();
    made->source_ = view(name);
    EARNEST_RETURN_IF_ERROR(read(made.get()));
    known = std::move(made);
  }
  *array = known.get();
  return {};
}

Status Weights::read(Array* array) const {
  if (device() == Device::kCuda) return send(array);
  const TensorView& source = array->source_;
  const bool float32 = precision_ != Precision::kBFloat16;
  const bool same = source.type == (float32 ? StoredType::kFloat32 : StoredType::kBFloat16);
  // With whatever is touched of a file, the system maps 64 KB around it.
  constexpr size_t kAround = size_t{64} << 10;
  const size_t bytes = static_cast<size_t>(source.count()) * size_of(precision_);
  const bool small = source.mapped != nullptr && bytes < kAround;
  if (same && !small && reinterpret_cast<uintptr_t>(source.data) % size_of(precision_) == 0) {
    array->data_ = source.data;
    return {};
  }
  array->copy_.resize(bytes);
  array->data_ = array->copy_.data();
  if (float32) {
    engine::read(source, 0, source.count(), reinterpret_cast<float*>(array->copy_.data()));
  } else {
    engine::read(source, 0, source.count(), reinterpret_cast<BFloat16*>(array->copy_.data()));
  }
  let_go(source);
  return {};
}

Status Weights::send(Array* array) const {
  const TensorView& source = array->source_;
  const bool same =
      source.type == (precision_ == Precision::kBFloat16 ? StoredType::kBFloat16 : StoredType::kFloat32);
  if (source.device == device() && same && source.shape.size() < 3) {  // as somebody else keeps them there
    array->data_ = source.data;
    return {};
  }
  TensorView view;
  std::unique_ptr<char[]> read_back;
  EARNEST_RETURN_IF_ERROR(bring_here("load", source, &read_back, &view));
  const MatrixRows rows({view}, {}, precision_);
  const void* numbers = rows.in_place();
  std::vector<char> converted;
  if (numbers == nullptr) {
    converted.resize(rows.bytes());
    rows.write_weight(converted.data());
    numbers = converted.data();
  }
  if (array->there_ == nullptr) EARNEST_RETURN_IF_ERROR(allocate("load", rows.bytes(), &array->there_));
  array->data_ = array->there_.get();
  EARNEST_RETURN_IF_ERROR(copy("load", device(), array->there_.get(), numbers, rows.bytes()));
  let_go(source);
  return {};
}

Status Weights::refresh() {
  return guarded("refresh", [&]() -> Status {
    for (const auto& [name, array] : arrays_) EARNEST_RETURN_IF_ERROR(read(array.get()));
    for (const auto& matrix : matrices_) EARNEST_RETURN_IF_ERROR(matrix->refresh());
    return {};
  });
}

void Weights::let_files_go() const {
  for (const auto& [name, view] : tensors_.views) let_go(view);
}

size_t Weights::bytes() const {
  size_t total = 0;
  for (const auto& matrix : matrices_) total += matrix->bytes();
  for (const auto& [name, array] : arrays_) {
    const size_t sent = static_cast<size_t>(array->source_.count()) * size_of(precision_);
    total += array->copy_.size() + (array->there_ == nullptr ? 0 : sent);
  }
  return total;
}

}  // namespace earnest::engine
