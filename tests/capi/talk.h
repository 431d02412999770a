// SPDX-License-Identifier: Apache-2.0
// Talking with the tiny model through earnest.h: handles that go back by themselves, and whole answers.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/include/earnest.h"
#include "tests/capi/wav_bytes.h"
#include "tests/cpp/check.h"

namespace talk {

template <auto kDestroy>
struct Destroy {
  template <typename T>
  void operator()(T* handle) const {
    kDestroy(handle);
  }
};
using Model = std::unique_ptr<earnest_model, Destroy<earnest_model_destroy>>;
using Engine = std::unique_ptr<earnest_engine, Destroy<earnest_engine_destroy>>;
using Session = std::unique_ptr<earnest_session, Destroy<earnest_session_destroy>>;
using Audio = std::unique_ptr<earnest_audio, Destroy<earnest_audio_destroy>>;
using Generation = std::unique_ptr<earnest_generation, Destroy<earnest_generation_destroy>>;

#define CHECK_OK(call)                                                                                 \
  do {                                                                                                 \
    const earnest_status check_status = (call);                                                        \
    if (check_status != EARNEST_OK) {                                                                  \
      ++check::failures();                                                                             \
      std::printf("%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call, earnest_status_name(check_status), \
                  earnest_last_error());                                                               \
    }                                                                                                  \
  } while (0)

inline Model model(const char* folder = TINY_MODEL) {
  earnest_model* made = nullptr;
  CHECK_OK(earnest_model_load(folder, nullptr, &made));
  return Model(made);
}

// kv_tokens: room for so many in the KV pool (0: the default); one takes 512 bytes of the tiny model.
inline Engine engine(const Model& model, uint64_t kv_tokens = 8192, uint32_t max_waiting = 0) {
  earnest_engine_params params;
  earnest_engine_params_default(&params, sizeof params);
  params.kv_bytes = kv_tokens * 512;
  params.max_waiting = max_waiting;
  params.threads = 1;
  earnest_engine* made = nullptr;
  CHECK_OK(earnest_engine_create(model.get(), &params, &made));
  return Engine(made);
}
inline Engine engine() { return engine(model()); }

inline Session session(const Engine& engine) {
  earnest_session* made = nullptr;
  CHECK_OK(earnest_session_create(engine.get(), nullptr, &made));
  return Session(made);
}

inline earnest_status add_text(const Session& session, std::string_view text, const char* role = "user") {
  return earnest_session_add_text(session.get(), role, text.data(), text.size());
}

inline earnest_generation_params params(uint32_t most = 12, uint64_t seed = 1) {
  earnest_generation_params params;
  earnest_generation_params_default(&params, sizeof params);
  params.max_tokens = most;
  params.seed = seed;
  return params;
}

inline Generation start(const Session& session, const earnest_generation_params& params) {
  earnest_generation* made = nullptr;
  CHECK_OK(earnest_generation_start(session.get(), &params, &made));
  return Generation(made);
}

struct Said {
  std::string reasoning, reply;
  std::vector<int32_t> ids;
  earnest_finish_reason finish = EARNEST_FINISH_NONE;
  bool operator==(const Said&) const = default;
};

// Takes all events; what they bring and what is asked for at the end must agree.
inline Said listen(const Generation& generation) {
  Said said;
  earnest_event event = EARNEST_EVENT_INIT;
  do {
    CHECK_OK(earnest_generation_next(generation.get(), 60000, &event));
    CHECK(event.struct_size == sizeof event);
    if (event.kind == EARNEST_EVENT_REASONING) said.reasoning.append(event.text, event.text_bytes);
    if (event.kind == EARNEST_EVENT_REPLY) said.reply.append(event.text, event.text_bytes);
    if (event.kind == EARNEST_EVENT_PREFILL) CHECK(event.done <= event.total && event.text == nullptr);
  } while (event.kind != EARNEST_EVENT_DONE && event.kind != EARNEST_EVENT_NONE);
  CHECK(event.status == EARNEST_OK);
  said.finish = event.finish_reason;
  size_t bytes = 0;
  CHECK(said.reasoning == earnest_generation_reasoning(generation.get(), nullptr));
  CHECK(said.reply == earnest_generation_reply(generation.get(), &bytes) && bytes == said.reply.size());
  size_t count = 0;
  earnest_generation_tokens(generation.get(), nullptr, nullptr, SIZE_MAX, &count);
  said.ids.resize(count);
  std::vector<float> logprobs(count, 1.0F);
  CHECK_OK(earnest_generation_tokens(generation.get(), said.ids.data(), logprobs.data(), count, &count));
  for (const float logprob : logprobs) CHECK(logprob <= 0.0F);
  return said;
}

inline Said answer(const Session& session, const earnest_generation_params& params = talk::params()) {
  return listen(start(session, params));
}

inline std::string wav(const std::vector<int16_t>& samples, uint32_t rate = 16000) {
  const std::string data(reinterpret_cast<const char*>(samples.data()), 2 * samples.size());
  return wav_bytes(data, rate, 1, 16);
}

inline std::vector<int16_t> tone(double seconds, uint32_t rate = 16000) {
  std::vector<int16_t> samples(static_cast<size_t>(seconds * rate));
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i] = static_cast<int16_t>(8000 * std::sin(0.05 * static_cast<double>(i)));
  }
  return samples;
}

}  // namespace talk
