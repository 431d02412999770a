// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/config.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "csrc/engine/guard.h"
#include "csrc/engine/mapped_file.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

constexpr char kModelType[] = "step_audio_2";
constexpr char kArchitecture[] = "StepAudio2ForCausalLM";
constexpr uint64_t kMostBytes = uint64_t{16} << 20;
constexpr int64_t kMostWidth = int64_t{1} << 20;  // of anything: products of three such sizes fit in 64 bits
constexpr int64_t kMostIds = int64_t{1} << 24;
constexpr int64_t kMostLayers = 1024;
constexpr int64_t kMostMels = 256;
constexpr int64_t kMostEos = 64;

// null counts as not there.
bool given(const json::Value& value) { return !value.absent() && value.kind() != json::Kind::kNull; }

std::string shown(const json::Value& value) {
  if (value.absent()) return "none";
  return shortened(value.text(), 100);
}

// Reads the fields of one object of the file.
class Part {
 public:
  Part(const char* name, const json::Value& object) : name_(name), object_(object) {}

  const json::Value operator[](const char* key) const { return object_[key]; }

  Status wrong(const char* key, const std::string& expected, const std::string& got) const {
    return invalid_argument(name_, key, expected, got);
  }

  // Leaves `number` as it is where the field is not given and may be missing.
  Status whole(const char* key, int64_t most, bool required, int64_t* number) const {
    const json::Value value = object_[key];
    if (!given(value)) return required ? wrong(key, "a value", "none") : Status();
    const auto read = value.integer();
    if (!read || *read < 1 || *read > most) {
      return wrong(key, "a whole number from 1 to " + std::to_string(most), shown(value));
    }
    *number = *read;
    return {};
  }

  Status positive(const char* key, double* number) const {
    const json::Value value = object_[key];
    if (!given(value)) return {};
    const auto read = value.number();
    if (!read || !(*read > 0) || !std::isfinite(static_cast<float>(*read)))
      return wrong(key, "a positive number", shown(value));
    *number = *read;
    return {};
  }

  Status flag(const char* key, bool* value) const {
    if (!given(object_[key])) return {};
    const auto read = object_[key].boolean();
    if (!read) return wrong(key, "true or false", shown(object_[key]));
    *value = *read;
    return {};
  }

  // A key that would change the arithmetic may only have the value that is computed.
  Status fixed(const char* key, const std::string& only) const {
    const json::Value value = object_[key];
    if (value.absent() || value.text() == only) return {};
    return wrong(key, only, shown(value));
  }

  Status heads(const char* key, int64_t width, int64_t count) const {
    if (width % count == 0 && width / count % 8 == 0 && width / count <= 256) return {};
    return wrong(
        key,
        "heads that split " + std::to_string(width) + " into sizes that are a multiple of 8, at most 256",
        std::to_string(count));
  }

 private:
  const char* name_;
  json::Value object_;
};

Status read_kv_heads(const Part& part, TextConfig* text) {
  int64_t groups = 0, heads = 0;
  EARNEST_RETURN_IF_ERROR(part.whole("num_attention_groups", kMostWidth, false, &groups));
  EARNEST_RETURN_IF_ERROR(part.whole("num_key_value_heads", kMostWidth, false, &heads));
  if (groups != 0 && heads != 0 && groups != heads) {
    return part.wrong("num_attention_groups", "num_key_value_heads (" + std::to_string(heads) + ")",
                      std::to_string(groups));
  }
  text->num_key_value_heads = heads != 0 ? heads : groups != 0 ? groups : text->num_attention_heads;
  if (text->num_attention_heads % text->num_key_value_heads == 0) return {};
  return part.wrong("num_key_value_heads",
                    "a divisor of num_attention_heads (" + std::to_string(text->num_attention_heads) + ")",
                    std::to_string(text->num_key_value_heads));
}

Status read_eos(const Part& part, TextConfig* text) {
  const json::Value value = part["eos_token_id"];
  if (!given(value)) return {};
  const bool list = value.kind() == json::Kind::kArray;
  const auto add = [&](const json::Value& item) -> Status {
    const auto id = item.integer();
    if (!id || *id < 0 || *id >= kMostIds)
      return part.wrong("eos_token_id", "a token id or a list of them", shown(value));
    text->eos_token_ids.push_back(*id);
    return {};
  };
  if (!list) return add(value);
  if (static_cast<int64_t>(value.size()) > kMostEos) {
    return part.wrong("eos_token_id", "at most " + std::to_string(kMostEos) + " ids",
                      std::to_string(value.size()));
  }
  for (const json::Value item : value.items()) EARNEST_RETURN_IF_ERROR(add(item));
  return {};
}

Status read_text(const json::Value& object, TextConfig* text) {
  const Part part("text_config", object);
  EARNEST_RETURN_IF_ERROR(part.fixed("hidden_act", "\"silu\""));
  EARNEST_RETURN_IF_ERROR(part.fixed("rope_scaling", "null"));
  EARNEST_RETURN_IF_ERROR(part.fixed("use_sliding_window", "false"));
  EARNEST_RETURN_IF_ERROR(part.fixed("attention_bias", "true"));
  EARNEST_RETURN_IF_ERROR(part.whole("vocab_size", kMostIds, true, &text->vocab_size));
  EARNEST_RETURN_IF_ERROR(part.whole("hidden_size", kMostWidth, true, &text->hidden_size));
  EARNEST_RETURN_IF_ERROR(part.whole("intermediate_size", kMostWidth, true, &text->intermediate_size));
  EARNEST_RETURN_IF_ERROR(part.whole("num_hidden_layers", kMostLayers, true, &text->num_hidden_layers));
  EARNEST_RETURN_IF_ERROR(part.whole("num_attention_heads", kMostWidth, true, &text->num_attention_heads));
  EARNEST_RETURN_IF_ERROR(read_kv_heads(part, text));
  EARNEST_RETURN_IF_ERROR(
      part.whole("max_position_embeddings", kMostIds, false, &text->max_position_embeddings));
  EARNEST_RETURN_IF_ERROR(part.positive("rms_norm_eps", &text->rms_norm_eps));
  EARNEST_RETURN_IF_ERROR(part.positive("rope_theta", &text->rope_theta));
  // False unless it is written: the class that published configs derive from has another default.
  EARNEST_RETURN_IF_ERROR(part.flag("tie_word_embeddings", &text->tie_word_embeddings));
  EARNEST_RETURN_IF_ERROR(part.heads("num_attention_heads", text->hidden_size, text->num_attention_heads));
  int64_t head_dim = text->head_dim();
  EARNEST_RETURN_IF_ERROR(part.whole("head_dim", kMostWidth, false, &head_dim));
  if (head_dim != text->head_dim()) {
    return part.wrong("head_dim", "hidden_size / num_attention_heads", std::to_string(head_dim));
  }
  return read_eos(part, text);
}

Status read_audio(const json::Value& object, EncoderConfig* audio) {
  const Part part("audio_encoder_config", object);
  EARNEST_RETURN_IF_ERROR(part.whole("n_mels", kMostMels, true, &audio->n_mels));
  EARNEST_RETURN_IF_ERROR(part.whole("n_audio_state", kMostWidth, true, &audio->n_audio_state));
  EARNEST_RETURN_IF_ERROR(part.whole("n_audio_head", kMostWidth, true, &audio->n_audio_head));
  EARNEST_RETURN_IF_ERROR(part.whole("n_audio_layer", kMostLayers, true, &audio->n_audio_layer));
  EARNEST_RETURN_IF_ERROR(part.whole("llm_dim", kMostWidth, true, &audio->llm_dim));
  EARNEST_RETURN_IF_ERROR(part.whole("n_audio_ctx", kMostWidth, false, &audio->n_audio_ctx));
  EARNEST_RETURN_IF_ERROR(part.heads("n_audio_head", audio->n_audio_state, audio->n_audio_head));
  int64_t kernel = 3, stride = 2;
  EARNEST_RETURN_IF_ERROR(part.whole("kernel_size", kMostWidth, false, &kernel));
  EARNEST_RETURN_IF_ERROR(part.whole("adapter_stride", kMostWidth, false, &stride));
  if (kernel != 3 || stride != 2) {
    return part.wrong("kernel_size and adapter_stride", "3 and 2",
                      std::to_string(kernel) + " and " + std::to_string(stride));
  }
  EARNEST_RETURN_IF_ERROR(part.flag("avg_pool", &audio->avg_pool));
  if (!given(part["audio_len"])) return {};
  const auto convention = part["audio_len"].string();
  if (convention != "hf" && convention != "vllm")
    return part.wrong("audio_len", "\"hf\" or \"vllm\"", shown(part["audio_len"]));
  audio->audio_len = convention == "hf" ? AudioLength::kHf : AudioLength::kVllm;
  return {};
}

// Which model this is. Sibling checkpoints name the same architecture with another model_type.
Status check_kind(const Part& part) {
  const json::Value kind = part["model_type"], names = part["architectures"];
  if (!kind.absent() && kind.string() != kModelType)
    return part.wrong("model_type", json::quoted(kModelType), shown(kind));
  bool named = names.absent();
  for (const json::Value name : names.items()) named = named || name.string() == kArchitecture;
  if (!named) return part.wrong("architectures", kArchitecture, shown(names));
  return {};
}

// That which `earnest quantize` writes, or none.
Status read_quantization(const Part& part, Quantization* quantization) {
  constexpr char kKey[] = "quantization_config";
  const json::Value value = part[kKey];
  const bool object = value.kind() == json::Kind::kObject;
  if (!given(value) || (object && value.size() == 0) || value.boolean() == false) return {};
  if (value["quant_method"].string() != "earnest")
    return part.wrong(kKey, "plain weights", "a quantised checkpoint");
  const auto weights = value["weights"].string();
  if ((weights != "int8" && weights != "int4") || value["version"].integer() != 1)
    return part.wrong(kKey, "weights \"int8\" or \"int4\", and version 1", shown(value));
  *quantization = weights == "int8" ? Quantization::kInt8 : Quantization::kInt4;
  return {};
}

}  // namespace

const char* name_of(Quantization quantization) {
  if (quantization == Quantization::kNone) return "none";
  return quantization == Quantization::kInt8 ? "int8" : "int4";
}

int64_t EncoderConfig::valid_positions(int64_t frames) const {
  const int64_t counted = audio_len == AudioLength::kVllm ? frames : std::max<int64_t>(frames - 2, 0);
  return (counted + 1) / 2;
}

int64_t EncoderConfig::audio_tokens(int64_t frames) const {
  const int64_t valid = valid_positions(frames);
  return ((avg_pool ? valid / 2 : valid) + 1) / 2;
}

int64_t EncoderConfig::kept_frames(int64_t frames) const {
  const int64_t made = positions(frames);
  return std::min(avg_pool ? made / 2 : made, 2 * audio_tokens(frames));
}

Status Config::parse(const json::Value& root, Config* config) {
  if (root.kind() != json::Kind::kObject) return invalid_argument("config", "root", "an object", shown(root));
  const Part part("config", root);
  EARNEST_RETURN_IF_ERROR(check_kind(part));
  for (const char* name : {"text_config", "audio_encoder_config"}) {
    if (part[name].kind() != json::Kind::kObject) return part.wrong(name, "an object", shown(part[name]));
  }
  Config read;
  EARNEST_RETURN_IF_ERROR(read_text(part["text_config"], &read.text));
  EARNEST_RETURN_IF_ERROR(read_audio(part["audio_encoder_config"], &read.audio));
  EARNEST_RETURN_IF_ERROR(read_quantization(part, &read.quantization));
  if (read.audio.llm_dim != read.text.hidden_size) {
    return part.wrong("llm_dim", "hidden_size (" + std::to_string(read.text.hidden_size) + ")",
                      std::to_string(read.audio.llm_dim));
  }
  *config = std::move(read);
  return {};
}

Status Config::load(const std::string& folder, Config* config) {
  return guarded("load", [&]() -> Status {
    std::shared_ptr<const MappedFile> file;
    EARNEST_RETURN_IF_ERROR(MappedFile::open(folder + "/config.json", kMostBytes, &file));
    json::Document document;
    EARNEST_RETURN_IF_ERROR(json::Document::parse(std::string(file->text()), file->path(), &document));
    return parse(document.root(), config);
  });
}

}  // namespace earnest::engine
