// SPDX-License-Identifier: Apache-2.0
// Sequences of calls of earnest.h. An input is a list of calls: which one, which of the handles there are (or
// NULL), which numbers. Whatever the order, each call gives a status, failures say why and create nothing,
// and in the end nothing is left.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "csrc/include/earnest.h"
#include "tests/capi/wav_bytes.h"
#include "tests/fuzz/driver.h"

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "broken promise: %s (last error: %s)\n", what, earnest_last_error());
  std::abort();
}

earnest_model* shared_model() {
  static earnest_model* model = [] {
    earnest_model* made = nullptr;
    if (earnest_model_load(TINY_MODEL, nullptr, &made) != EARNEST_OK) fail("the tiny model loads");
    std::atexit([] { earnest_model_destroy(shared_model()); });
    return made;
  }();
  return model;
}

// Bytes as choices; zero when they are used up.
class Choices {
 public:
  Choices(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool done() const { return at_ >= size_; }
  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  size_t below(size_t count) { return byte() % count; }
  uint64_t number() {  // small, or at an edge
    const uint8_t kind = byte();
    if (kind < 192) return kind % 32;
    const uint64_t edge = uint64_t{1} << kind % 64;
    return kind < 224 ? edge : edge - 1;
  }
  double real() {
    constexpr double kReals[] = {0, 0.5, 0.9, 1, 1.5, -1, 1e-300, 1e300, HUGE_VAL, -HUGE_VAL};
    const uint8_t kind = byte();
    return kind % 11 == 10 ? std::strtod("nan", nullptr) : kReals[kind % 11];
  }
  const char* role() {
    constexpr const char* kRoles[] = {"user", "user", "user",    "system", "assistant",
                                      "tool", "",     "us er\n", nullptr};
    return kRoles[below(std::size(kRoles))];
  }
  std::string text() {
    constexpr const char* kTexts[] = {"",     "I am",         " tired",    "<|EOT|>",
                                      "\xFF", "\xE2\x82\xAC", "<think>\n", "</think>"};
    std::string text;
    for (size_t parts = below(4); parts > 0; --parts) text += kTexts[below(std::size(kTexts))];
    return text;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

earnest_status checked(earnest_status status) {
  const int number = static_cast<int>(status);
  if (number < EARNEST_OK || number > EARNEST_UNSUPPORTED) fail("a status is one of the names");
  if (status == EARNEST_INTERNAL) fail("nothing internal fails");
  if (status != EARNEST_OK && earnest_last_error()[0] == '\0') fail("a failure says why");
  return status;
}

// A few handles of one kind.
template <typename T, void (*kDestroy)(T*)>
class Slots {
 public:
  ~Slots() {
    for (T* handle : handles_) kDestroy(handle);
  }
  T* pick(Choices& choices) { return handles_[choices.below(handles_.size())]; }
  template <typename Create>
  void make(Choices& choices, const Create& create) {
    T*& slot = handles_[choices.below(handles_.size())];
    T* made = reinterpret_cast<T*>(16);
    const earnest_status status = checked(create(&made));
    if ((status == EARNEST_OK) != (made != nullptr)) fail("there is a handle where the call went well");
    kDestroy(slot);
    slot = made;
  }
  void drop(Choices& choices) {
    T*& slot = handles_[choices.below(handles_.size())];
    kDestroy(slot);
    slot = nullptr;
  }

 private:
  std::array<T*, 3> handles_ = {};
};

struct World {
  Slots<earnest_engine, earnest_engine_destroy> engines;
  Slots<earnest_session, earnest_session_destroy> sessions;
  Slots<earnest_audio, earnest_audio_destroy> audios;
  Slots<earnest_generation, earnest_generation_destroy> generations;
};

template <typename Struct>
size_t struct_size(Choices& choices) {
  return choices.below(16) == 0 ? static_cast<size_t>(choices.number()) : sizeof(Struct);
}

void make_engine(Choices& choices, World& world) {
  earnest_engine_params params;
  earnest_engine_params_default(&params, sizeof params);
  params.struct_size = std::min(struct_size<earnest_engine_params>(choices), sizeof params);
  // Any number now and then only: the address sanitizer takes seconds to mark gigabytes.
  params.kv_bytes = choices.below(64) == 0  ? choices.number()
                    : choices.below(8) == 0 ? choices.number() % (2 << 20)
                                            : 512 * 1024;
  params.max_generations = static_cast<uint32_t>(choices.below(4));
  params.max_waiting = static_cast<uint32_t>(choices.below(3));
  params.prefill_tokens = static_cast<uint32_t>(choices.below(4) == 0 ? choices.number() : 0);
  params.threads = 1;
  earnest_model* model = choices.below(16) == 0 ? nullptr : shared_model();
  world.engines.make(choices, [&](auto** made) { return earnest_engine_create(model, &params, made); });
}

void use_engine(Choices& choices, World& world) {
  earnest_engine* engine = world.engines.pick(choices);
  if (choices.below(16) == 0) {
    checked(earnest_engine_drain(engine, static_cast<int64_t>(choices.below(3))));
    return;
  }
  earnest_engine_stats stats = EARNEST_ENGINE_STATS_INIT;
  if (checked(earnest_engine_get_stats(engine, &stats)) != EARNEST_OK) return;
  if (stats.kv_tokens_used > stats.kv_tokens) fail("no more tokens are used than there are");
}

void make_session(Choices& choices, World& world) {
  earnest_session_params params;
  earnest_session_params_default(&params, sizeof params);
  params.template_name = choices.below(4) == 0 ? "stepfun-compat" : choices.below(16) == 0 ? "x" : nullptr;
  params.history = choices.below(3) == 0 ? EARNEST_HISTORY_STRIP : EARNEST_HISTORY_KEEP;
  params.tools = choices.below(8) == 0 ? "[{\"name\":\"a\"}]" : choices.below(16) == 0 ? "{" : nullptr;
  earnest_engine* engine = world.engines.pick(choices);
  world.sessions.make(choices, [&](auto** made) { return earnest_session_create(engine, &params, made); });
}

void fork_or_file(Choices& choices, World& world) {
  earnest_session* session = world.sessions.pick(choices);
  static const std::string path = std::string(SCRATCH) + "/fuzz.session";
  switch (choices.below(6)) {
    case 0:
      checked(earnest_session_save(session, path.c_str()));
      break;
    case 1: {
      earnest_engine* engine = world.engines.pick(choices);
      world.sessions.make(choices,
                          [&](auto** made) { return earnest_session_load(engine, path.c_str(), made); });
      break;
    }
    default:
      world.sessions.make(choices, [&](auto** made) { return earnest_session_fork(session, made); });
  }
}

void write_messages(Choices& choices, World& world) {
  earnest_session* session = world.sessions.pick(choices);
  const std::string text = choices.text();
  switch (choices.below(8)) {
    case 0:
      checked(earnest_session_end_message(session));
      break;
    case 1:
      checked(earnest_session_add_answer(session, choices.below(2) ? text.c_str() : nullptr, text.c_str()));
      break;
    case 2: {
      const std::string wav = wav_bytes(std::string(choices.number() % 5000, '\x11'), 16000, 1, 16);
      checked(earnest_session_add_wav(session, choices.role(), wav.data(), wav.size() - choices.below(2)));
      break;
    }
    default:
      checked(earnest_session_add_text(session, choices.role(), text.data(), text.size()));
  }
}

void look_at_messages(Choices& choices, World& world) {
  earnest_session* session = world.sessions.pick(choices);
  const size_t count = earnest_session_message_count(session);
  size_t tokens = 0;
  const size_t message = choices.number();
  const earnest_status status = checked(earnest_session_message_tokens(session, message, &tokens));
  if (status == EARNEST_OK && message >= count) fail("only messages that are there have tokens");
  if (choices.below(3) == 0) checked(earnest_session_truncate(session, choices.number()));
  if (choices.below(3) == 0) checked(earnest_session_warm(session));
}

void speak(Choices& choices, World& world) {
  if (choices.below(3) == 0) {
    earnest_session* session = world.sessions.pick(choices);
    const char* role = choices.role();
    const auto rate = static_cast<uint32_t>(choices.below(4) == 0 ? choices.number() : 8000);
    const auto channels = static_cast<uint32_t>(choices.below(8) == 0 ? choices.number() : 2);
    world.audios.make(choices,
                      [&](auto** made) { return earnest_audio_create(session, role, rate, channels, made); });
    return;
  }
  static const std::array<float, 8192> kFloats = {0.1F, -0.3F, 2.0F};
  static const std::array<int16_t, 8192> kShorts = {100, -32768, 32767};
  earnest_audio* audio = world.audios.pick(choices);
  switch (choices.below(8)) {
    case 0:
      checked(earnest_audio_commit(audio));
      break;
    case 1:
      checked(earnest_audio_clear(audio));
      break;
    case 2:
      checked(earnest_audio_push_s16(audio, kShorts.data(), choices.byte() % 64));
      break;
    case 3:
      if (checked(earnest_audio_push_f32(audio, nullptr, SIZE_MAX - choices.below(9))) == EARNEST_OK) {
        fail("no memory is that large");
      }
      break;
    default:
      checked(earnest_audio_push_f32(audio, kFloats.data(), choices.byte() % 64));
  }
  if (!(earnest_audio_seconds(audio) >= 0)) fail("a clip is as long as it is");
}

void begin_answer(Choices& choices, World& world) {
  earnest_generation_params params;
  earnest_generation_params_default(&params, sizeof params);
  params.struct_size = std::min(struct_size<earnest_generation_params>(choices), sizeof params);
  params.max_tokens = static_cast<uint32_t>(choices.below(8) == 0 ? choices.number() : choices.below(12));
  params.seed = choices.number();
  const std::string prefill = choices.text(), stop = choices.text();
  const char* const stops[] = {stop.c_str()};
  const int32_t ids[] = {static_cast<int32_t>(choices.number())};
  if (choices.below(4) == 0) params.prefill = prefill.c_str();
  if (choices.below(4) == 0) params.stop = stops, params.stop_count = 1;
  if (choices.below(8) == 0) params.stop_ids = ids, params.stop_id_count = 1;
  if (choices.below(4) == 0) params.temperature = choices.real();
  if (choices.below(8) == 0) params.top_p = choices.real();
  if (choices.below(8) == 0) params.min_p = choices.real();
  if (choices.below(8) == 0) params.repetition_penalty = choices.real();
  if (choices.below(8) == 0) params.presence_penalty = choices.real();
  if (choices.below(8) == 0) params.top_k = static_cast<int32_t>(choices.number());
  const int thinking = static_cast<int>(choices.below(4));
  std::memcpy(&params.thinking, &thinking, sizeof thinking);
  earnest_session* session = world.sessions.pick(choices);
  world.generations.make(choices,
                         [&](auto** made) { return earnest_generation_start(session, &params, made); });
}

void next_events(Choices& choices, World& world) {
  earnest_generation* generation = world.generations.pick(choices);
  for (size_t count = choices.below(20); count > 0; --count) {
    earnest_event event = EARNEST_EVENT_INIT;
    event.struct_size = std::min(struct_size<earnest_event>(choices), sizeof event);
    const earnest_status status = checked(earnest_generation_next(generation, choices.below(3), &event));
    if (status != EARNEST_OK && status != EARNEST_TIMEOUT) return;
    if (status != EARNEST_OK || event.struct_size < sizeof event) continue;
    const bool text = event.kind == EARNEST_EVENT_REASONING || event.kind == EARNEST_EVENT_REPLY;
    if (text != (event.text != nullptr)) fail("texts alone have text");
    if (text && event.text[event.text_bytes] != '\0') fail("a text ends in NUL");
  }
}

void use_answer(Choices& choices, World& world) {
  earnest_generation* generation = world.generations.pick(choices);
  size_t count = 0;
  std::array<int32_t, 64> ids;
  earnest_usage usage = EARNEST_USAGE_INIT;
  switch (choices.below(6)) {
    case 0:
      std::thread([&] { earnest_generation_cancel(generation); }).join();
      break;
    case 1:
      checked(earnest_generation_set_callback(generation, [](const earnest_event*, void*) {}, nullptr));
      break;
    case 2:
      checked(earnest_generation_tokens(generation, ids.data(), nullptr, choices.below(65), &count));
      break;
    case 3:
      if (checked(earnest_generation_get_usage(generation, &usage)) != EARNEST_OK) break;
      if (usage.cached_tokens > usage.prompt_tokens) fail("only what is read can be cached");
      break;
    default:
      if (earnest_generation_reply(generation, &count)[count] != '\0') fail("a reply ends in NUL");
      (void)earnest_generation_reasoning(generation, nullptr);
  }
}

void drop(Choices& choices, World& world) {
  switch (choices.below(4)) {
    case 0:
      return world.engines.drop(choices);
    case 1:
      return world.sessions.drop(choices);
    case 2:
      return world.audios.drop(choices);
    default:
      return world.generations.drop(choices);
  }
}

using Call = void (*)(Choices&, World&);
constexpr Call kCalls[] = {make_engine,    use_engine,     make_session,     fork_or_file, write_messages,
                           write_messages, write_messages, look_at_messages, speak,        speak,
                           begin_answer,   next_events,    next_events,      use_answer,   drop};

}  // namespace

FuzzMaterial fuzz_material() {
  FuzzMaterial material;
  // An engine, a session, a turn, an answer: what calls need to have something to do.
  std::string opening;
  for (uint8_t slot = 0; slot < 3; ++slot) {
    opening += std::string("\0\1\1\0\0\1\1", 7) + static_cast<char>(slot);
    opening += std::string("\2\1\1\0\1\1", 6) + static_cast<char>(slot) + static_cast<char>(slot);
  }
  material.seeds.push_back(opening);
  for (int seed = 0; seed < 40; ++seed) {
    uint32_t state = static_cast<uint32_t>(seed) * 2654435761U + 1;
    std::string calls = opening;
    for (int i = 0; i < 40 * (1 + seed); ++i) {
      state = state * 1664525U + 1013904223U;
      calls += static_cast<char>(state >> 24);
    }
    material.seeds.push_back(calls);
  }
  material.longest = 4096;
  return material;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Choices choices(data, size);
  World world;
  while (!choices.done()) kCalls[choices.below(std::size(kCalls))](choices, world);
  return 0;
}
