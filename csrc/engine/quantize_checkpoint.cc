// SPDX-License-Identifier: Apache-2.0
// From a checkpoint folder to a quantised one. Tensors pass through memory one at a time.
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "csrc/engine/guard.h"
#include "csrc/engine/json.h"
#include "csrc/engine/mapped_file.h"
#include "csrc/engine/quantization.h"
#include "csrc/engine/safetensors.h"
#include "csrc/engine/weights.h"

namespace earnest::engine {
namespace {

namespace fs = std::filesystem;

constexpr char kOp[] = "quantize";
constexpr size_t kAlignment = 64;  // of the first number in the file; panels are a multiple of it

struct Saved {
  std::string name;
  const TensorView* view = nullptr;
  bool in_codes = false;
  quantized::Codes codes = quantized::Codes::kInt8;

  std::vector<int64_t> shape() const { return in_codes ? packed_shape(view->shape, codes) : view->shape; }
  const char* type() const { return name_of(in_codes ? StoredType::kBytes : view->type); }
  size_t bytes() const {
    size_t total = in_codes ? 1 : size_of(view->type);
    for (const int64_t size : shape()) total *= static_cast<size_t>(size);
    return total;
  }
};

// Codes first: so each begins on a boundary of 64 bytes.
std::vector<Saved> in_file_order(const Tensors& tensors, const QuantizedTensors& quantized, bool tied) {
  std::vector<Saved> saved;
  for (const bool in_codes : {true, false}) {
    for (const auto& [name, view] : tensors.views) {
      if (tied && name == "lm_head.weight") continue;
      const auto found = quantized.find(name);
      if ((found != quantized.end()) != in_codes) continue;
      saved.push_back({name, &view, in_codes, in_codes ? found->second : quantized::Codes::kInt8});
    }
  }
  return saved;
}

std::string header_of(const std::vector<Saved>& saved) {
  std::string text = "{\"__metadata__\":{\"format\":\"pt\"}";
  size_t begin = 0;
  for (const Saved& tensor : saved) {
    const size_t end = begin + tensor.bytes();
    text.append(",").append(json::quoted(tensor.name));
    text.append(":{\"dtype\":\"").append(tensor.type());
    text.append("\",\"shape\":").append(shape_text(tensor.shape()));
    text.append(",\"data_offsets\":[").append(std::to_string(begin));
    text.append(",").append(std::to_string(end)).append("]}");
    begin = end;
  }
  text += "}";
  while ((8 + text.size()) % kAlignment != 0) text += ' ';
  std::string whole(8, '\0');
  for (size_t i = 0; i < 8; ++i) whole[i] = static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i));
  return whole + text;
}

Status not_written(const fs::path& path) {
  return {StatusCode::kInternal,
          "[quantize] " + path.filename().string() + ": expected to be written, got an error of the system"};
}

Status write_tensors(const std::vector<Saved>& saved, const fs::path& path) {
  std::ofstream file(path, std::ios::binary);
  const std::string header = header_of(saved);
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  std::vector<char> packed;
  for (const Saved& tensor : saved) {
    const char* data = static_cast<const char*>(tensor.view->data);
    if (tensor.in_codes) {
      packed.resize(tensor.bytes());
      EARNEST_RETURN_IF_ERROR(pack_tensor(*tensor.view, tensor.codes, packed.data()));
      data = packed.data();
    }
    file.write(data, static_cast<std::streamsize>(tensor.bytes()));
    if (!file) break;
  }
  file.close();
  return file ? Status() : not_written(path);
}

// The config as it was, member by member, but for what it says of quantisation.
Status write_config(const std::string& in, Quantization quantization, const fs::path& path) {
  constexpr char kKey[] = "quantization_config";
  std::shared_ptr<const MappedFile> source;
  EARNEST_RETURN_IF_ERROR(MappedFile::open(in + "/config.json", json::kMaxBytes, &source));
  json::Document document;
  EARNEST_RETURN_IF_ERROR(json::Document::parse(std::string(source->text()), source->path(), &document));
  std::string text = "{\n";
  for (const auto& [name, value] : document.root().members()) {
    if (name == kKey) continue;
    text.append("  ").append(json::quoted(name)).append(": ").append(value.text()).append(",\n");
  }
  text.append("  ").append(json::quoted(kKey)).append(": {\"quant_method\": \"earnest\", \"weights\": ");
  text.append(json::quoted(name_of(quantization))).append(", \"version\": 1}\n}\n");
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file ? Status() : not_written(path);
}

bool is_rewritten(const std::string& name) {
  return name == "config.json" || name == "model.safetensors.index.json" ||
         fs::path(name).extension() == ".safetensors";
}

Status copy_others(const fs::path& in, const fs::path& out) {
  std::error_code error;
  for (fs::directory_iterator entry(in, error), end; !error && entry != end; entry.increment(error)) {
    if (!entry->is_regular_file(error) || is_rewritten(entry->path().filename().string())) continue;
    fs::copy_file(entry->path(), out / entry->path().filename(), error);
    if (error) return not_written(entry->path());
  }
  return error ? not_written(in) : Status();
}

Status write_folder(const std::string& in, Quantization quantization, const fs::path& out) {
  Config config;
  Tensors tensors;
  EARNEST_RETURN_IF_ERROR(Config::load(in, &config));
  if (config.quantization != Quantization::kNone) {
    return invalid_argument(kOp, "checkpoint", "one that is not quantised yet", name_of(config.quantization));
  }
  EARNEST_RETURN_IF_ERROR(read_checkpoint(in, &tensors));
  EARNEST_RETURN_IF_ERROR(check_tensors(config, tensors));
  const bool tied = config.text.tie_word_embeddings;
  if (tied) EARNEST_RETURN_IF_ERROR(check_tied(tensors));
  const auto saved = in_file_order(tensors, quantized_tensors(config.text, quantization), tied);
  EARNEST_RETURN_IF_ERROR(write_tensors(saved, out / "model.safetensors"));
  EARNEST_RETURN_IF_ERROR(write_config(in, quantization, out / "config.json"));
  return copy_others(in, out);
}

}  // namespace

Status quantize_checkpoint(const std::string& in, const std::string& out, Quantization quantization) {
  if (quantization == Quantization::kNone) return invalid_argument(kOp, "weights", "int8 or int4", "none");
  return guarded(kOp, [&]() -> Status {
    std::error_code error;
    if (fs::exists(out, error)) return invalid_argument(kOp, "out", "a folder that is not there yet", out);
    const fs::path beside = fs::path(out).parent_path() / (fs::path(out).filename().string() + ".part");
    fs::create_directories(beside, error);
    if (error) return invalid_argument(kOp, "out", "a folder that can be made", out);
    Status status = write_folder(in, quantization, beside);
    if (status.ok()) {
      fs::rename(beside, out, error);
      if (error) status = not_written(out);
    }
    if (!status.ok()) fs::remove_all(beside, error);
    return status;
  });
}

}  // namespace earnest::engine
