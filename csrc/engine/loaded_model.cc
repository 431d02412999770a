// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/loaded_model.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "csrc/engine/guard.h"
#include "csrc/engine/json.h"
#include "csrc/engine/safetensors.h"
#include "kernels/common/thread_pool.h"

namespace earnest::engine {
namespace {

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::kFloat32:
      return "float32";
    case Precision::kBFloat16:
      return "bfloat16";
    case Precision::kMixed:
      return "mixed";
  }
  return "";
}

// Of an answer's words these are none: what only a prompt has, and speech, which no text can show.
bool never_said(std::string_view name) {
  return name == "<|BOT|>" || name.starts_with("<audio_") || name.starts_with("<tts_");
}

// An object written member by member.
class Object {
 public:
  void add(const std::string& name, const std::string& value) {
    if (!text_.empty()) text_ += ',';
    text_.append(json::quoted(name)).append(":").append(value);
  }
  void add(const std::string& name, int64_t value) { add(name, std::to_string(value)); }
  std::string text() const { return std::string("{").append(text_).append("}"); }

 private:
  std::string text_;
};

// Some numbers of a tensor, from places all over it.
constexpr int64_t kPlaces = 64, kNumbers = 16;
using Sample = std::array<float, kPlaces * kNumbers>;

Sample sample_of(const TensorView& view) {
  Sample sample = {};
  const int64_t count = view.count();
  for (int64_t place = 0; place < kPlaces; ++place) {
    const int64_t first = std::max<int64_t>(count - kNumbers, 0) / kPlaces * place;
    read(view, first, std::min(kNumbers, count - first), sample.data() + place * kNumbers);
  }
  return sample;
}

// Names, shapes and samples of all tensors. Samples are taken by all threads, some tensors ahead: most of the
// time goes into pages of the file that nobody has touched yet.
void add_tensors(const Tensors& tensors, Sha256* hash) {
  constexpr size_t kAhead = 256;
  std::vector<const TensorView*> views;
  for (const auto& [name, view] : tensors.views) views.push_back(&view);
  std::vector<Sample> samples(std::min(kAhead, views.size()));
  size_t next = 0;
  for (const auto& [name, view] : tensors.views) {
    if (next % kAhead == 0) {
      const auto count = static_cast<int64_t>(std::min(kAhead, views.size() - next));
      parallel_for(count, [&](int64_t i) {
        samples[static_cast<size_t>(i)] = sample_of(*views[next + static_cast<size_t>(i)]);
      });
    }
    hash->add(name.size());
    hash->add(name.data(), name.size());
    for (const int64_t size : view.shape) hash->add(static_cast<uint64_t>(size));
    hash->add(&samples[next++ % kAhead], sizeof(Sample));
  }
}

}  // namespace

Digest fingerprint_of(const Config& config, Precision precision, Quantization quantization,
                      const Tensors& tensors) {
  Sha256 hash;
  const TextConfig& text = config.text;
  const EncoderConfig& audio = config.audio;
  for (const int64_t number :
       {static_cast<int64_t>(precision), static_cast<int64_t>(quantization), text.vocab_size,
        text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads,
        text.num_key_value_heads, audio.n_mels, audio.n_audio_state, audio.n_audio_layer,
        static_cast<int64_t>(audio.audio_len)}) {
    hash.add(static_cast<uint64_t>(number));
  }
  hash.add(&text.rms_norm_eps, sizeof text.rms_norm_eps);
  hash.add(&text.rope_theta, sizeof text.rope_theta);
  add_tensors(tensors, &hash);
  return hash.finish();
}

Status LoadedModel::load(const std::string& folder, Precision precision, Quantization quantization,
                         std::shared_ptr<const LoadedModel>* loaded, const Place& place) {
  return guarded("load", [&]() -> Status {
    auto tokenizer = std::make_shared<Tokenizer>();
    EARNEST_RETURN_IF_ERROR(Tokenizer::load(folder, tokenizer.get()));
    Config config;
    EARNEST_RETURN_IF_ERROR(Config::load(folder, &config));
    Tensors tensors;
    EARNEST_RETURN_IF_ERROR(read_checkpoint(folder, &tensors));
    const bool saved_so = config.quantization != Quantization::kNone;
    const Digest fingerprint =
        fingerprint_of(config, precision, saved_so ? config.quantization : quantization, tensors);
    std::shared_ptr<Model> model;
    EARNEST_RETURN_IF_ERROR(
        Model::create(config, std::move(tensors), precision, &model, quantization, place));
    return create(std::move(model), std::move(tokenizer), fingerprint, loaded);
  });
}

Status LoadedModel::create(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
                           const Digest& fingerprint, std::shared_ptr<const LoadedModel>* loaded) {
  return guarded("load", [&]() -> Status {
    const int64_t vocabulary = model->config().text.vocab_size;
    if (tokenizer->end() > vocabulary) {
      return {StatusCode::kCorrupt, "[load] tokenizer.json: expected ids below vocab_size (" +
                                        std::to_string(vocabulary) + "), got " +
                                        std::to_string(tokenizer->end() - 1)};
    }
    if (model->precision() == Precision::kMixed) {
      return unsupported("load", "precision", "float32 or bfloat16", "mixed, which cannot hear");
    }
    std::shared_ptr<LoadedModel> made(new LoadedModel);
    made->model_ = std::move(model);
    made->tokenizer_ = std::move(tokenizer);
    made->fingerprint_ = fingerprint;
    EARNEST_RETURN_IF_ERROR(SpecialIds::read(*made->tokenizer_, &made->special_));
    made->choose_ids();
    made->info_ = made->describe();
    *loaded = std::move(made);
    return {};
  });
}

void LoadedModel::choose_ids() {
  std::set<int32_t> stop(special_.stop.begin(), special_.stop.end());
  const int64_t vocabulary = config().text.vocab_size;
  for (const int64_t id : config().text.eos_token_ids) {
    if (id >= 0 && id < vocabulary) stop.insert(static_cast<int32_t>(id));
  }
  stop_ids_.assign(stop.begin(), stop.end());
  for (int32_t id = 0; id < static_cast<int32_t>(vocabulary); ++id) {
    const bool means =
        tokenizer_->has(id) && !(tokenizer_->is_special(id) && never_said(tokenizer_->bytes(id, false)));
    if (!means && !stop.contains(id)) suppressed_.push_back(id);
  }
}

std::string LoadedModel::describe() const {
  const TextConfig& text = config().text;
  const EncoderConfig& audio = config().audio;
  Object special, sound, info;
  special.add("bot", special_.bot);
  special.add("eot", special_.eot);
  special.add("audio_start", special_.audio_start);
  special.add("audio_end", special_.audio_end);
  special.add("audio_patch", special_.audio_patch);
  if (special_.think_open) special.add("think_open", *special_.think_open);
  if (special_.think_close) special.add("think_close", *special_.think_close);
  std::string stop;
  for (const int32_t id : stop_ids_) stop.append(stop.empty() ? "[" : ",").append(std::to_string(id));
  special.add("stop", stop.append("]"));
  sound.add("mels", audio.n_mels);
  sound.add("width", audio.n_audio_state);
  sound.add("layers", audio.n_audio_layer);
  sound.add("heads", audio.n_audio_head);
  sound.add("length", json::quoted(audio.audio_len == AudioLength::kHf ? "hf" : "vllm"));
  info.add("vocabulary", text.vocab_size);
  info.add("width", text.hidden_size);
  info.add("inner_width", text.intermediate_size);
  info.add("layers", text.num_hidden_layers);
  info.add("heads", text.num_attention_heads);
  info.add("kv_heads", text.num_key_value_heads);
  info.add("context", context());
  info.add("device", json::quoted(name_of(model_->place())));
  info.add("products", json::quoted(earnest::engine::name_of(model_->products())));
  info.add("precision", json::quoted(name_of(model_->precision())));
  info.add("quantization", json::quoted(earnest::engine::name_of(model_->quantization())));
  info.add("weight_bytes", static_cast<int64_t>(model_->weight_bytes()));
  info.add("fingerprint", json::quoted(hexadecimal(fingerprint_)));
  info.add("audio", sound.text());
  info.add("special_tokens", special.text());
  return info.text();
}

}  // namespace earnest::engine
