// SPDX-License-Identifier: Apache-2.0
// A model of random numbers in memory, small enough to run thousands of turns, and a way to talk with it.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "csrc/engine/answer.h"
#include "csrc/engine/engine.h"
#include "csrc/engine/loaded_model.h"
#include "csrc/engine/session.h"
#include "csrc/engine/spoken_clip.h"
#include "tests/cpp/check.h"
#include "tests/cpp/small_vocabulary.h"

namespace tiny {

using namespace earnest::engine;
using earnest::Status;
using earnest::StatusCode;

constexpr const char* kPoison = "\x01";  // a text whose embedding is not a number

inline float nearest_bfloat16(float number) {
  earnest::BFloat16 stored;
  earnest::narrow(number, &stored);
  return earnest::widen(stored);
}

inline Config config(int64_t context) {
  Config config;
  config.text.vocab_size = 420;
  config.text.hidden_size = 32;
  config.text.intermediate_size = 48;
  config.text.num_hidden_layers = 2;
  config.text.num_attention_heads = 4;
  config.text.num_key_value_heads = 2;
  config.text.max_position_embeddings = context;
  config.audio.n_mels = 8;
  config.audio.n_audio_state = 16;
  config.audio.n_audio_head = 2;
  config.audio.n_audio_layer = 1;
  config.audio.llm_dim = 32;
  return config;
}

// With heads of 64, which kernels on a GPU take.
inline Config config_for_gpu(int64_t context) {
  Config wide = config(context);
  wide.text.hidden_size = wide.audio.llm_dim = 256;
  wide.audio.n_audio_state = 128;
  return wide;
}

// The same, as small as heads of 64 allow: the emulator runs a thread of the GPU at a time.
inline Config narrow_config_for_gpu(int64_t context) {
  Config narrow = config_for_gpu(context);
  narrow.text.hidden_size = narrow.audio.llm_dim = 128;
  narrow.text.num_attention_heads = 2;
  narrow.text.num_key_value_heads = 1;
  return narrow;
}

// rounded: to bfloat16, so that weights of every precision are the same numbers.
inline Tensors tensors_of(const Config& sizes, uint32_t seed, bool rounded = false) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  Tensors tensors;
  for (const auto& [name, shape] : tensor_shapes(sizes)) {
    TensorView view;
    view.shape = shape;
    auto numbers = std::make_shared<std::vector<float>>(static_cast<size_t>(view.count()));
    const float scale = name.find("norm") != name.npos || name.find("_ln") != name.npos ? 1.0F
                        : name.find("embed_tokens") != name.npos                        ? 1.0F
                        : sizes.text.hidden_size > 64                                   ? 0.06F
                                                                                        : 0.2F;
    for (float& number : *numbers) number = scale * normal(random);
    for (float& number : *numbers) {
      if (rounded) number = nearest_bfloat16(number);
    }
    if (name == "model.embed_tokens.weight") {
      for (int64_t i = 0; i < shape[1]; ++i) (*numbers)[static_cast<size_t>(kPoison[0] * shape[1] + i)] = NAN;
    }
    view.data = numbers->data();
    tensors.views[name] = view;
    tensors.owners.push_back(numbers);
  }
  return tensors;
}

inline std::shared_ptr<const LoadedModel> model_of(const Config& sizes, uint32_t seed, Precision precision,
                                                   const Place& place = {}, bool rounded = false,
                                                   Quantization codes = Quantization::kNone,
                                                   Products products = Products::kOurs) {
  Tensors tensors = tensors_of(sizes, seed, rounded);
  const Digest fingerprint = fingerprint_of(sizes, precision, codes, tensors);
  std::shared_ptr<Model> weights;
  CHECK(Model::create(sizes, std::move(tensors), precision, &weights, codes, place, products).ok());
  auto tokenizer = std::make_shared<Tokenizer>();
  const std::vector<small::Merge> merges = {{"a", "n"}, {"t", "h"}, {"th", "e"}, {" ", "the"}, {"o", "u"}};
  CHECK(Tokenizer::parse(small::definition(merges), "tiny", tokenizer.get()).ok());
  std::shared_ptr<const LoadedModel> loaded;
  CHECK(LoadedModel::create(weights, tokenizer, fingerprint, &loaded).ok());
  return loaded;
}

inline std::shared_ptr<const LoadedModel> model(int64_t context = 4096, uint32_t seed = 1,
                                                Precision precision = Precision::kFloat32) {
  return model_of(config(context), seed, precision);
}

inline std::shared_ptr<Engine> engine(const std::shared_ptr<const LoadedModel>& model,
                                      const EngineOptions& options = {}) {
  std::shared_ptr<Engine> engine;
  CHECK(Engine::create(model, options, &engine).ok());
  return engine;
}

// Bytes of keys and values of so many tokens.
inline uint64_t kv_bytes(const LoadedModel& model, int64_t tokens) {
  const TextConfig& text = model.config().text;
  return static_cast<uint64_t>(tokens * 2 * text.num_hidden_layers * text.num_key_value_heads *
                               text.head_dim()) *
         size_of(model.model().precision());
}

inline std::unique_ptr<Session> session(const std::shared_ptr<Engine>& engine,
                                        const SessionOptions& options = {}) {
  std::unique_ptr<Session> session;
  CHECK(Session::create(engine, options, &session).ok());
  return session;
}

inline std::vector<float> sound(double seconds, uint32_t seed, int64_t rate = 16000) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.1F);
  std::vector<float> samples(static_cast<size_t>(seconds * static_cast<double>(rate)));
  for (float& sample : samples) sample = normal(random);
  return samples;
}

inline void add_sound(Session* session, const std::vector<float>& samples, const char* role = "user") {
  std::unique_ptr<SpokenClip> clip;
  CHECK(SpokenClip::create(*session, role, 16000, 1, &clip).ok());
  CHECK(clip->push(std::span<const float>(samples)).ok() && clip->commit().ok());
}

// Waits until nothing is left to be read ahead.
inline void rest(const Engine& engine) {
  for (int i = 0; i < 60000 && engine.stats().reading_ahead > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(engine.stats().reading_ahead == 0);
}

// An answer, and everything that can be known about it.
struct Said {
  Status started, status;
  Finish finish = Finish::kNone;
  std::vector<int32_t> ids;
  std::vector<float> logp;
  std::string reasoning, reply;
  Usage usage;

  // Tokens, log-probabilities and texts, to the last bit.
  bool operator==(const Said& other) const {
    return finish == other.finish && ids == other.ids && logp == other.logp && reasoning == other.reasoning &&
           reply == other.reply && status.code() == other.status.code();
  }
};

inline AnswerOptions options(uint64_t seed, int64_t most = 12) {
  AnswerOptions options;
  options.seed = seed;
  options.max_tokens = most;
  options.sampling.temperature = 0.8;
  options.sampling.top_p = 0.95;
  options.sampling.suppressed = {kPoison[0]};
  return options;
}

// The same, that goes on until its length is reached.
inline AnswerOptions endless(const LoadedModel& model, uint64_t seed, int64_t most) {
  AnswerOptions endless = options(seed, most);
  std::vector<int32_t>& suppressed = endless.sampling.suppressed;
  suppressed.insert(suppressed.end(), model.stop_ids().begin(), model.stop_ids().end());
  return endless;
}

// Waits for the end; events and the texts at the end must agree. cancel_after: events of text, or -1.
inline Said finish(Answer* answer, int cancel_after = -1) {
  Said said;
  Event event;
  std::string reasoning, reply;
  while (true) {
    if (cancel_after-- == 0) answer->cancel();
    const Status status = answer->next(60000, &event);
    CHECK(status.ok());
    if (!status.ok() || event.kind == EventKind::kDone) break;
    if (event.kind == EventKind::kReasoning) reasoning += event.text;
    if (event.kind == EventKind::kReply) reply += event.text;
  }
  said.finish = event.finish;
  said.status = event.status;
  said.usage = answer->usage();
  said.reasoning = answer->reasoning();
  said.reply = answer->reply();
  CHECK(said.reasoning == reasoning && said.reply == reply);
  CHECK(answer->tokens(&said.ids, &said.logp).ok() && said.ids.size() == said.logp.size());
  return said;
}

inline Said say(Session* session, const AnswerOptions& options, int cancel_after = -1) {
  std::unique_ptr<Answer> answer;
  Said said;
  const Status status = Answer::start(session, options, &answer);
  if (status.ok()) said = finish(answer.get(), cancel_after);
  said.started = status;
  return said;
}

}  // namespace tiny
