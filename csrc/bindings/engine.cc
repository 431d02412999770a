// SPDX-License-Identifier: Apache-2.0
// The engine's forward passes for Python, as the tests call them: arrays in, arrays filled.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/bindings/draws.h"
#include "csrc/bindings/place.h"
#include "csrc/engine/generation.h"
#include "csrc/engine/json.h"
#include "csrc/engine/model.h"
#include "csrc/engine/quantization.h"
#include "csrc/engine/safetensors.h"

namespace earnest::bindings {
namespace {

using namespace nb::literals;
using engine::Arena;
using engine::KVCache;
using engine::KVPool;
using engine::Precision;
using engine::Quantization;
using engine::StoredType;
using Read = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Write = nb::ndarray<nb::c_contig, nb::device::cpu>;
using ReadAnywhere = nb::ndarray<nb::ro>;
using WriteAnywhere = nb::ndarray<nb::c_contig>;
using Listed = std::tuple<std::string, std::string, std::vector<int64_t>>;  // name, type, shape

void expect(bool holds, const std::string& argument, const std::string& expected) {
  if (!holds) raise_if_error(invalid_argument("engine", argument, expected, "something else"));
}

template <typename Body>
void without_gil(const Body& body) {
  Status status;
  {
    nb::gil_scoped_release release;
    status = body();
  }
  raise_if_error(status);
}

std::optional<StoredType> type_of(const nb::dlpack::dtype& dtype) {
  if (dtype == nb::dtype<float>()) return StoredType::kFloat32;
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  if (dtype.bits == 16 && code == nb::dlpack::dtype_code::Bfloat) return StoredType::kBFloat16;
  if (dtype.bits == 16 && code == nb::dlpack::dtype_code::Float) return StoredType::kFloat16;
  return std::nullopt;
}

Precision precision_named(const std::string& name) {
  expect(name == "float32" || name == "bfloat16" || name == "mixed", "precision",
         "float32, bfloat16 or mixed");
  return name == "float32"    ? Precision::kFloat32
         : name == "bfloat16" ? Precision::kBFloat16
                              : Precision::kMixed;
}

std::vector<Listed> listing(const engine::Tensors& tensors) {
  std::vector<Listed> listed;
  for (const auto& [name, view] : tensors.views) {
    // Every byte is touched, so that one beyond the file would show.
    std::vector<float> numbers(static_cast<size_t>(view.count()));
    engine::read(view, 0, view.count(), numbers.data());
    listed.emplace_back(name, engine::name_of(view.type), view.shape);
  }
  return listed;
}

std::vector<Listed> read_safetensors(const std::string& path) {
  engine::Tensors tensors;
  without_gil([&] { return engine::read_safetensors(path, &tensors); });
  return listing(tensors);
}

std::vector<Listed> read_checkpoint(const std::string& folder) {
  engine::Tensors tensors;
  without_gil([&] { return engine::read_checkpoint(folder, &tensors); });
  return listing(tensors);
}

engine::Config parse_config(const std::string& text) {
  engine::json::Document document;
  raise_if_error(engine::json::Document::parse(text, "config", &document));
  engine::Config config;
  raise_if_error(engine::Config::parse(document.root(), &config));
  return config;
}

nb::dict config_fields(const std::string& text) {
  const engine::Config config = parse_config(text);
  const engine::TextConfig& t = config.text;
  const engine::EncoderConfig& a = config.audio;
  nb::dict fields;
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, int64_t>>{{"vocab_size", t.vocab_size},
                                                    {"hidden_size", t.hidden_size},
                                                    {"intermediate_size", t.intermediate_size},
                                                    {"num_hidden_layers", t.num_hidden_layers},
                                                    {"num_attention_heads", t.num_attention_heads},
                                                    {"num_key_value_heads", t.num_key_value_heads},
                                                    {"max_position_embeddings", t.max_position_embeddings},
                                                    {"n_mels", a.n_mels},
                                                    {"n_audio_state", a.n_audio_state},
                                                    {"n_audio_head", a.n_audio_head},
                                                    {"n_audio_layer", a.n_audio_layer},
                                                    {"llm_dim", a.llm_dim},
                                                    {"n_audio_ctx", a.n_audio_ctx}}) {
    fields[name] = value;
  }
  fields["rms_norm_eps"] = t.rms_norm_eps;
  fields["rope_theta"] = t.rope_theta;
  fields["tie_word_embeddings"] = t.tie_word_embeddings;
  fields["eos_token_ids"] = nb::cast(t.eos_token_ids);
  fields["avg_pool"] = a.avg_pool;
  fields["audio_len"] = a.audio_len == engine::AudioLength::kHf ? "hf" : "vllm";
  return fields;
}

// A model and the scratch memory of the one thread that uses it here.
struct LoadedModel {
  std::shared_ptr<engine::Model> model;
  std::vector<ReadAnywhere> kept;  // a trainer's tensors
  Arena arena;

  int64_t width() const { return model->config().text.hidden_size; }
  StoredType type() const {
    return model->precision() == Precision::kBFloat16 ? StoredType::kBFloat16 : StoredType::kFloat32;
  }
  template <typename Array>
  void expect_rows(const char* argument, const Array& x, int64_t rows) const {
    expect(x.ndim() == 2 && static_cast<int64_t>(x.shape(0)) == rows &&
               static_cast<int64_t>(x.shape(1)) == width() && type_of(x.dtype()) == type(),
           argument,
           "[" + std::to_string(rows) + ", " + std::to_string(width()) + "] of the model's precision");
  }
};

Quantization quantization_named(const std::string& name) {
  expect(name == "none" || name == "int8" || name == "int4", "quantization", "none, int8 or int4");
  return name == "none" ? Quantization::kNone : name == "int8" ? Quantization::kInt8 : Quantization::kInt4;
}

std::unique_ptr<LoadedModel> load(const std::string& folder, const std::string& precision,
                                  const std::string& quantization, const std::string& device,
                                  const std::string& products) {
  auto loaded = std::make_unique<LoadedModel>();
  const Precision chosen = precision_named(precision);
  const Quantization weights = quantization_named(quantization);
  engine::Place place;
  engine::Products who;
  raise_if_error(engine::read_place(device, &place));
  raise_if_error(engine::read_products(products, &who));
  without_gil([&] { return engine::Model::load(folder, chosen, &loaded->model, weights, place, who); });
  return loaded;
}

// Where an array lies, for the engine.
template <typename Array>
engine::Place engine_place_of(const Array& array) {
  const bool on_gpu = array.device_type() == nb::device::cuda::value;
  return {device_of(array.device_type()), on_gpu ? array.device_id() : 0};
}

bool is_contiguous(const ReadAnywhere& array) {
  int64_t step = 1;
  for (size_t axis = array.ndim(); axis-- > 0;) {
    if (array.shape(axis) != 1 && array.stride(axis) != step) return false;
    step *= static_cast<int64_t>(array.shape(axis));
  }
  return true;
}

// A trainer's tensor, as it lies there: in the host's memory, or on a GPU.
engine::TensorView view_of(const std::string& name, const ReadAnywhere& array) {
  const auto wrong = [&](const std::string& expected, const std::string& got) {
    raise_if_error(invalid_argument("engine", name, expected, got));
  };
  if (array.device_type() == nb::device::cuda::value) {
    raise_if_error(check_cuda_build("engine"));
  } else if (array.device_type() != nb::device::cpu::value) {
    wrong("a tensor on cpu or cuda", place_of(array));
  }
  const auto type = type_of(array.dtype());
  if (!type) wrong("float32, bfloat16 or float16", "another dtype");
  if (!is_contiguous(array)) wrong("a contiguous tensor, which is read where it lies", "a strided one");
  engine::TensorView view;
  view.type = *type;
  view.device = device_of(array.device_type());
  for (size_t axis = 0; axis < array.ndim(); ++axis)
    view.shape.push_back(static_cast<int64_t>(array.shape(axis)));
  view.data = array.data();
  return view;
}

// The model computes where its tensors lie.
std::unique_ptr<LoadedModel> from_memory(const std::string& config, const nb::dict& tensors,
                                         const std::string& precision, const std::string& quantization,
                                         const std::string& products) {
  auto loaded = std::make_unique<LoadedModel>();
  const Precision chosen = precision_named(precision);
  const Quantization weights = quantization_named(quantization);
  const engine::Config parsed = parse_config(config);
  engine::Products who;
  raise_if_error(engine::read_products(products, &who));
  engine::Tensors views;
  engine::Place place;
  for (const auto& [key, value] : tensors) {
    const auto name = nb::cast<std::string>(key);
    const auto array = nb::cast<ReadAnywhere>(value, false);
    engine::TensorView view = view_of(name, array);
    if (loaded->kept.empty()) place = engine_place_of(array);
    if (engine_place_of(array) != place) {
      raise_if_error(invalid_argument("engine", name,
                                      "a tensor on " + place_of(loaded->kept[0]) + " as the first",
                                      "one on " + place_of(array)));
    }
    views.views.emplace(name, std::move(view));
    loaded->kept.push_back(array);
  }
  without_gil([&] {
    return engine::Model::create(parsed, std::move(views), chosen, &loaded->model, weights, place, who);
  });
  return loaded;
}

int64_t audio_tokens(const LoadedModel& loaded, int64_t frames) {
  return loaded.model->config().audio.audio_tokens(frames);
}

void hear(LoadedModel& loaded, const Input<float, 2>& mel, const Write& out) {
  const auto frames = static_cast<int64_t>(mel.shape(0));
  expect(static_cast<int64_t>(mel.shape(1)) == loaded.model->config().audio.n_mels, "mel",
         "[frames, n_mels]");
  loaded.expect_rows("out", out, audio_tokens(loaded, frames));
  loaded.arena.reset();
  const auto sound = engine::Sound::of_features(mel.data(), frames);
  without_gil([&] { return loaded.model->hear(sound, out.data(), &loaded.arena); });
}

void hear_samples(LoadedModel& loaded, const Input<float, 1>& pcm, const Write& out) {
  const auto sound = engine::Sound::of_samples(pcm.data(), static_cast<int64_t>(pcm.shape(0)));
  loaded.expect_rows("out", out, audio_tokens(loaded, sound.frames));
  loaded.arena.reset();
  without_gil([&] { return loaded.model->hear(sound, out.data(), &loaded.arena); });
}

std::shared_ptr<KVPool> make_pool(const LoadedModel& loaded, int64_t tokens) {
  std::shared_ptr<KVPool> pool;
  const engine::Model& model = *loaded.model;
  raise_if_error(KVPool::create(model.config().text, model.precision(), tokens, &pool, model.place()));
  return pool;
}

std::unique_ptr<KVCache> allocate(KVPool& pool, int64_t capacity) {
  auto cache = std::make_unique<KVCache>();
  raise_if_error(pool.allocate(capacity, cache.get()));
  return cache;
}

// (cache, ids, embeddings or None, wanted) for each segment.
using Asked = std::tuple<KVCache*, Input<int64_t, 1>, std::optional<Read>, int64_t>;

std::vector<engine::Segment> segments_of(const LoadedModel& loaded, const std::vector<Asked>& asked,
                                         const Write& out) {
  std::vector<engine::Segment> segments;
  int64_t wanted = 0;
  for (const auto& [cache, ids, embeddings, last] : asked) {
    engine::Segment segment;
    segment.cache = cache;
    segment.ids = ids.data();
    segment.count = static_cast<int64_t>(ids.shape(0));
    segment.wanted = last;
    if (embeddings) {
      segment.embedding_rows = static_cast<int64_t>(embeddings->shape(0));
      segment.embeddings = embeddings->data();
      loaded.expect_rows("embeddings", *embeddings, segment.embedding_rows);
    }
    expect(last >= 0 && last <= segment.count, "wanted", "0 to the number of tokens");
    wanted += last;
    segments.push_back(segment);
  }
  loaded.expect_rows("out", out, wanted);
  return segments;
}

void forward(LoadedModel& loaded, const std::vector<Asked>& asked, const Write& out) {
  const auto segments = segments_of(loaded, asked, out);
  loaded.arena.reset();
  without_gil([&] { return loaded.model->forward(segments, out.data(), &loaded.arena); });
}

// One wanted token of each segment, and its logits, or instead tokens drawn by them.
void decode(LoadedModel& loaded, const std::vector<Asked>& asked, const Write& out,
            const Output<float, 2>& logits, engine::DecodeGraphs& graphs, const std::optional<Draws>& draws) {
  const auto segments = segments_of(loaded, asked, out);
  expect(logits.shape(0) == segments.size() && out.shape(0) == segments.size() &&
             static_cast<int64_t>(logits.shape(1)) == loaded.model->config().text.vocab_size,
         "logits", "[segments, vocab], of one wanted token each");
  AskedDraws drawn(draws, segments.size(), loaded.model->config().text.vocab_size);
  loaded.arena.reset();
  without_gil([&]() -> Status {
    Status status =
        loaded.model->decode(segments, drawn.rows(), out.data(), logits.data(), &loaded.arena, &graphs);
    return status.ok() ? drawn.finish(logits.data()) : status;
  });
}

nb::dict counts_of(const engine::DecodeGraphs& graphs) {
  nb::dict fields;
  fields["recorded_graphs"] = graphs.counts().recorded;
  fields["graph_steps"] = graphs.counts().replayed;
  fields["plain_steps"] = graphs.counts().plain;
  const Status& trouble = graphs.trouble();
  fields["graph_trouble"] = trouble.ok() ? nb::none() : nb::cast(trouble.message());
  return fields;
}

void logits(LoadedModel& loaded, const Read& hidden, const Output<float, 2>& out) {
  const auto rows = static_cast<int64_t>(out.shape(0));
  loaded.expect_rows("hidden", hidden, rows);
  expect(static_cast<int64_t>(out.shape(1)) == loaded.model->config().text.vocab_size, "out",
         "[rows, vocab]");
  loaded.arena.reset();
  without_gil([&] { return loaded.model->logits(hidden.data(), rows, out.data(), &loaded.arena); });
}

void logprob(LoadedModel& loaded, const Read& hidden, const Input<int64_t, 1>& targets, double temperature,
             const Output<float, 1>& logp, const Output<float, 1>& entropy) {
  const auto rows = static_cast<int64_t>(targets.shape(0));
  loaded.expect_rows("hidden", hidden, rows);
  expect(logp.shape(0) == targets.shape(0) && entropy.shape(0) == targets.shape(0), "logp", "[rows]");
  loaded.arena.reset();
  without_gil([&] {
    return loaded.model->logprob(hidden.data(), rows, targets.data(), temperature, logp.data(),
                                 entropy.data(), &loaded.arena);
  });
}

// Keys and values of each layer, [rows * room, kv_heads, dim], where the model computes: row i has the tokens
// from i * room on.
std::shared_ptr<KVPool> pool_over(const LoadedModel& loaded, const std::vector<WriteAnywhere>& keys,
                                  const std::vector<WriteAnywhere>& values, int64_t tokens) {
  const engine::TextConfig& text = loaded.model->config().text;
  std::vector<void*> memory[2];
  for (const auto& [arrays, kept] : {std::pair(&keys, &memory[0]), std::pair(&values, &memory[1])}) {
    for (const WriteAnywhere& array : *arrays) {
      expect(engine_place_of(array) == loaded.model->place(), "keys",
             "memory on " + engine::name_of(loaded.model->place()));
      expect(array.ndim() == 3 && static_cast<int64_t>(array.shape(0)) == tokens &&
                 static_cast<int64_t>(array.shape(1)) == text.num_key_value_heads &&
                 static_cast<int64_t>(array.shape(2)) == text.head_dim() &&
                 type_of(array.dtype()) == loaded.type(),
             "keys", "[rows * room, kv_heads, dim] of the model's precision");
      kept->push_back(array.data());
    }
  }
  std::shared_ptr<KVPool> pool;
  const engine::Model& model = *loaded.model;
  raise_if_error(KVPool::over(text, model.precision(), tokens, memory[0], memory[1], &pool, model.place()));
  return pool;
}

engine::GenerationSettings settings_of(double temperature, double top_p, int32_t top_k,
                                       std::vector<int32_t> suppressed, std::vector<int32_t> stop,
                                       int64_t after_stop, int64_t most_tokens) {
  engine::GenerationSettings settings;
  settings.sampling.temperature = temperature;
  settings.sampling.top_p = top_p;
  settings.sampling.top_k = top_k;
  settings.sampling.suppressed = std::move(suppressed);
  settings.stop = std::move(stop);
  settings.after_stop = after_stop;
  settings.most_tokens = most_tokens;
  return settings;
}

// (ids, logp, stopped) of each row, whose prompts of `lengths` tokens stand in keys and values already.
using Said = std::vector<std::tuple<std::vector<int64_t>, std::vector<float>, bool>>;

// All but these two is in the host's memory.
Said generate(LoadedModel& loaded, const std::vector<WriteAnywhere>& keys,
              const std::vector<WriteAnywhere>& values, const Input<int64_t, 1>& lengths, int64_t room,
              const Read& hidden, const Input<double, 2>& uniforms, double temperature, double top_p,
              int32_t top_k, std::vector<int32_t> suppressed, std::vector<int32_t> stop, int64_t after_stop,
              const Write& drawn_from) {
  const auto rows = static_cast<int64_t>(lengths.shape(0));
  expect(room >= 1 && rows <= KVPool::kMostTokens / room, "room",
         "1 or more, and at most 2^31 - 1 tokens in all");
  expect(static_cast<int64_t>(uniforms.shape(0)) == rows, "uniforms", "[rows, most_tokens]");
  loaded.expect_rows("hidden", hidden, rows);
  loaded.expect_rows("drawn_from", drawn_from, rows);
  if (rows == 0) return {};
  const auto pool = pool_over(loaded, keys, values, rows * room);
  std::vector<KVCache> caches(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i) {
    raise_if_error(pool->adopt(i * room, room, lengths.data()[i], &caches[static_cast<size_t>(i)]));
  }
  const auto settings = settings_of(temperature, top_p, top_k, std::move(suppressed), std::move(stop),
                                    after_stop, static_cast<int64_t>(uniforms.shape(1)));
  std::vector<engine::Generated> generated;
  without_gil([&] {
    return engine::generate(*loaded.model, settings, &caches, hidden.data(), uniforms.data(), &loaded.arena,
                            &generated, drawn_from.data());
  });
  Said said;
  for (auto& one : generated) said.emplace_back(std::move(one.ids), std::move(one.logp), one.stopped);
  return said;
}

}  // namespace

void bind_engine(nb::module_& top) {
  nb::module_ module = top.def_submodule("engine");
  module.def("read_safetensors", &read_safetensors, "path"_a);
  module.def("read_checkpoint", &read_checkpoint, "folder"_a);
  module.def("config_fields", &config_fields, "text"_a);
  module.def("load", &load, "folder"_a, "precision"_a, "quantization"_a = "none", "device"_a = "cpu",
             "products"_a = "ours");
  module.def("from_memory", &from_memory, "config"_a, "tensors"_a, "precision"_a, "quantization"_a = "none",
             "products"_a = "ours");
  module.def(
      "quantize",
      [](const std::string& in, const std::string& out, const std::string& weights) {
        const Quantization chosen = quantization_named(weights);
        without_gil([&] { return engine::quantize_checkpoint(in, out, chosen); });
      },
      "checkpoint"_a, "out"_a, "weights"_a);
  nb::class_<KVCache>(module, "KVCache")
      .def_prop_ro("length", &KVCache::length)
      .def_prop_ro("start", &KVCache::start)
      .def("truncate", [](KVCache& cache, int64_t length) { raise_if_error(cache.truncate(length)); })
      .def("copy", [](KVCache& cache, const KVCache& other, int64_t length) {
        raise_if_error(cache.copy(other, length));
      });
  nb::class_<KVPool>(module, "KVPool")
      .def("allocate", &allocate, "capacity"_a)
      .def_prop_ro("bytes", &KVPool::bytes)
      .def_prop_ro("free_tokens", &KVPool::free_tokens);
  nb::class_<engine::DecodeGraphs>(module, "DecodeGraphs")
      .def(nb::init<bool>(), "wanted"_a)
      .def("counts", &counts_of);
  bind_clip_features(module);
  nb::class_<LoadedModel>(module, "Model")
      .def("audio_tokens", &audio_tokens, "frames"_a)
      .def("hear", &hear, "mel"_a.noconvert(), "out"_a.noconvert())
      .def("hear_samples", &hear_samples, "pcm"_a.noconvert(), "out"_a.noconvert())
      .def("pool", &make_pool, "tokens"_a)
      .def("forward", &forward, "segments"_a, "out"_a.noconvert())
      .def("decode", &decode, "segments"_a, "out"_a.noconvert(), "logits"_a.noconvert(), "graphs"_a,
           "draws"_a = nb::none())
      .def("logits", &logits, "hidden"_a.noconvert(), "out"_a.noconvert())
      .def("logprob", &logprob, "hidden"_a.noconvert(), "targets"_a.noconvert(), "temperature"_a,
           "logp"_a.noconvert(), "entropy"_a.noconvert())
      .def("generate", &generate, "keys"_a, "values"_a, "lengths"_a.noconvert(), "room"_a,
           "hidden"_a.noconvert(), "uniforms"_a.noconvert(), "temperature"_a, "top_p"_a, "top_k"_a,
           "suppressed"_a, "stop"_a, "after_stop"_a, "drawn_from"_a.noconvert())
      .def("refresh", [](LoadedModel& loaded) { without_gil([&] { return loaded.model->refresh(); }); })
      .def_prop_ro("weight_bytes", [](const LoadedModel& loaded) { return loaded.model->weight_bytes(); });
}

}  // namespace earnest::bindings
