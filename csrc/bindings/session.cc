// SPDX-License-Identifier: Apache-2.0
// earnest.h for Python: earnest/engine.py is the face of it. Everything that may wait or compute runs without
// the interpreter's lock.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <new>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/include/earnest.h"

namespace earnest::bindings {
namespace {

using namespace nb::literals;

[[noreturn]] void raise(const char* exception, const std::string& message) {
  const nb::object type = nb::module_::import_("earnest.errors").attr(exception);
  PyErr_SetString(type.ptr(), message.c_str());
  throw nb::python_error();
}

void check(earnest_status status, const std::string& message) {
  switch (status) {
    case EARNEST_OK:
      return;
    case EARNEST_OUT_OF_MEMORY:
      throw std::bad_alloc();
    case EARNEST_BUSY:
      raise("Busy", message);
    case EARNEST_CONTEXT_FULL:
      raise("ContextFull", message);
    case EARNEST_TIMEOUT:
      PyErr_SetString(PyExc_TimeoutError, message.c_str());
      throw nb::python_error();
    case EARNEST_INTERNAL:
    case EARNEST_DEVICE:
      throw std::runtime_error(message);
    default:
      throw nb::value_error(message.c_str());
  }
}

// For texts that C knows by where they end.
const char* c_text(const std::string& text) {
  if (text.find('\0') != text.npos) {
    raise_if_error(invalid_argument("engine", "text", "one without a zero character", "one with it"));
  }
  return text.c_str();
}

// call() -> earnest_status, without the lock.
template <typename Call>
void run(const Call& call) {
  earnest_status status = EARNEST_OK;
  std::string message;
  {
    nb::gil_scoped_release release;
    status = call();
    if (status != EARNEST_OK) message = earnest_last_error();
  }
  check(status, message);
}

// A handle and the function that gives it back, which may wait as well.
template <typename T, void (*kDestroy)(T*)>
class Handle {
 public:
  Handle() = default;
  Handle(const Handle&) = delete;
  ~Handle() {
    nb::gil_scoped_release release;
    kDestroy(handle_);
  }
  T** place() { return &handle_; }
  T* get() const { return handle_; }

 private:
  T* handle_ = nullptr;
};
struct Engine : Handle<earnest_engine, earnest_engine_destroy> {
  std::string info;
};
struct Session : Handle<earnest_session, earnest_session_destroy> {};
struct Clip : Handle<earnest_audio, earnest_audio_destroy> {};
struct Answer : Handle<earnest_generation, earnest_generation_destroy> {};

// ---- engine ----

std::unique_ptr<Engine> make_engine(const std::string& folder, const std::string& device, int weights,
                                    int products, uint64_t kv_bytes, uint32_t max_generations,
                                    uint32_t max_waiting, uint32_t threads, uint32_t prefill_tokens,
                                    std::optional<bool> cuda_graphs) {
  earnest_model_params model_params;
  earnest_model_params_default(&model_params, sizeof model_params);
  model_params.weights = static_cast<earnest_weights>(weights);
  Handle<earnest_model, earnest_model_destroy> model;
  const char* path = c_text(folder);
  model_params.device = c_text(device);
  model_params.products = static_cast<earnest_products>(products);
  run([&] { return earnest_model_load(path, &model_params, model.place()); });
  earnest_engine_params params;
  earnest_engine_params_default(&params, sizeof params);
  params.device = c_text(device);
  params.kv_bytes = kv_bytes;
  params.max_generations = max_generations;
  params.max_waiting = max_waiting;
  params.threads = threads;
  params.prefill_tokens = prefill_tokens;
  if (cuda_graphs) params.cuda_graphs = *cuda_graphs ? EARNEST_CUDA_GRAPHS_ON : EARNEST_CUDA_GRAPHS_OFF;
  auto engine = std::make_unique<Engine>();
  engine->info = earnest_model_info(model.get());
  run([&] { return earnest_engine_create(model.get(), &params, engine->place()); });
  return engine;
}

nb::dict stats_of(const Engine& engine) {
  earnest_engine_stats stats = EARNEST_ENGINE_STATS_INIT;
  run([&] { return earnest_engine_get_stats(engine.get(), &stats); });
  nb::dict fields;
  fields["running"] = stats.running;
  fields["waiting"] = stats.waiting;
  fields["sessions"] = stats.sessions;
  fields["kv_tokens"] = stats.kv_tokens;
  fields["kv_tokens_used"] = stats.kv_tokens_used;
  fields["prompt_tokens"] = stats.prompt_tokens;
  fields["cached_tokens"] = stats.cached_tokens;
  fields["completion_tokens"] = stats.completion_tokens;
  fields["recorded_graphs"] = stats.recorded_graphs;
  fields["graph_steps"] = stats.graph_steps;
  fields["plain_steps"] = stats.plain_steps;
  fields["graph_trouble"] = stats.graph_trouble ? nb::cast(std::string(stats.graph_trouble)) : nb::none();
  return fields;
}

std::string chat(const Engine& engine, const std::string& request) {
  char* response = nullptr;
  const char* asked = c_text(request);
  run([&] { return earnest_chat(engine.get(), asked, &response); });
  std::string text(response);
  earnest_free(response);
  return text;
}

// ---- session ----

std::unique_ptr<Session> make_session(const Engine& engine, const std::string& template_name, bool strip,
                                      const std::optional<std::string>& tools) {
  earnest_session_params params;
  earnest_session_params_default(&params, sizeof params);
  params.template_name = c_text(template_name);
  params.history = strip ? EARNEST_HISTORY_STRIP : EARNEST_HISTORY_KEEP;
  params.tools = tools ? c_text(*tools) : nullptr;
  auto session = std::make_unique<Session>();
  run([&] { return earnest_session_create(engine.get(), &params, session->place()); });
  return session;
}

std::unique_ptr<Session> load_session(const Engine& engine, const std::string& path) {
  auto session = std::make_unique<Session>();
  const char* file = c_text(path);
  run([&] { return earnest_session_load(engine.get(), file, session->place()); });
  return session;
}

std::unique_ptr<Session> fork(const Session& session) {
  auto made = std::make_unique<Session>();
  run([&] { return earnest_session_fork(session.get(), made->place()); });
  return made;
}

void add_text(Session& session, const std::string& role, const std::string& text) {
  const char* who = c_text(role);
  run([&] { return earnest_session_add_text(session.get(), who, text.data(), text.size()); });
}

void add_answer(Session& session, const std::optional<std::string>& reasoning, const std::string& reply) {
  const char* thought = reasoning ? c_text(*reasoning) : nullptr;
  const char* answer = c_text(reply);
  run([&] { return earnest_session_add_answer(session.get(), thought, answer); });
}

size_t tokens_of(const Session& session, size_t message) {
  size_t tokens = 0;
  run([&] { return earnest_session_message_tokens(session.get(), message, &tokens); });
  return tokens;
}

// ---- clip ----

std::unique_ptr<Clip> make_clip(Session& session, const std::string& role, uint32_t rate, uint32_t channels) {
  auto clip = std::make_unique<Clip>();
  const char* who = c_text(role);
  run([&] { return earnest_audio_create(session.get(), who, rate, channels, clip->place()); });
  return clip;
}

void push_float(Clip& clip, const Input<float, 2>& samples) {
  const float* data = data_of("audio", "pcm", samples);
  run([&] { return earnest_audio_push_f32(clip.get(), data, samples.shape(0)); });
}

void push_short(Clip& clip, const Input<int16_t, 2>& samples) {
  const int16_t* data = data_of("audio", "pcm", samples);
  run([&] { return earnest_audio_push_s16(clip.get(), data, samples.shape(0)); });
}

// ---- answer ----

std::unique_ptr<Answer> start(Session& session, uint32_t max_tokens, int thinking, double temperature,
                              int32_t top_k, double top_p, double min_p, double repetition_penalty,
                              double presence_penalty, double frequency_penalty, uint64_t seed,
                              const std::vector<std::string>& stop, const std::vector<int32_t>& stop_ids,
                              const std::optional<std::string>& prefill) {
  earnest_generation_params params;
  earnest_generation_params_default(&params, sizeof params);
  params.max_tokens = max_tokens;
  params.thinking = static_cast<earnest_thinking>(thinking);
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.min_p = min_p;
  params.repetition_penalty = repetition_penalty;
  params.presence_penalty = presence_penalty;
  params.frequency_penalty = frequency_penalty;
  params.seed = seed;
  std::vector<const char*> stops;
  for (const std::string& text : stop) stops.push_back(c_text(text));
  params.stop = stops.data();
  params.stop_count = stops.size();
  params.stop_ids = stop_ids.data();
  params.stop_id_count = stop_ids.size();
  params.prefill = prefill ? c_text(*prefill) : nullptr;
  auto answer = std::make_unique<Answer>();
  run([&] { return earnest_generation_start(session.get(), &params, answer->place()); });
  return answer;
}

// (kind, text, done, total, finish reason) as in earnest.h, or None where nothing came in time. An answer
// that failed raises.
using Event = std::tuple<int, std::string, uint32_t, uint32_t, int>;

std::optional<Event> next(Answer& answer, int64_t timeout_ms) {
  earnest_event event = EARNEST_EVENT_INIT;
  earnest_status status = EARNEST_OK;
  std::string message;
  {
    nb::gil_scoped_release release;
    status = earnest_generation_next(answer.get(), timeout_ms, &event);
    if (status == EARNEST_OK) status = event.status;
    if (status != EARNEST_OK) message = earnest_last_error();
  }
  if (status == EARNEST_TIMEOUT) return std::nullopt;
  check(status, message);
  std::string text = event.text ? std::string(event.text, event.text_bytes) : std::string();
  return Event(event.kind, std::move(text), event.done, event.total, event.finish_reason);
}

std::string said(const char* (*text)(earnest_generation*, size_t*), const Answer& answer) {
  size_t bytes = 0;
  const char* start = text(answer.get(), &bytes);
  return {start, bytes};
}

nb::dict usage_of(const Answer& answer) {
  earnest_usage usage = EARNEST_USAGE_INIT;
  run([&] { return earnest_generation_get_usage(answer.get(), &usage); });
  nb::dict fields;
  fields["prompt_tokens"] = usage.prompt_tokens;
  fields["cached_tokens"] = usage.cached_tokens;
  fields["audio_tokens"] = usage.audio_tokens;
  fields["completion_tokens"] = usage.completion_tokens;
  fields["reasoning_tokens"] = usage.reasoning_tokens;
  fields["waiting_ms"] = usage.waiting_ms;
  fields["prefill_ms"] = usage.prefill_ms;
  fields["first_token_ms"] = usage.first_token_ms;
  fields["total_ms"] = usage.total_ms;
  return fields;
}

std::pair<std::vector<int32_t>, std::vector<float>> tokens(Answer& answer) {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  size_t count = 0;
  run([&] { return earnest_generation_tokens(answer.get(), nullptr, nullptr, SIZE_MAX, &count); });
  ids.resize(count);
  logprobs.resize(count);
  run([&] { return earnest_generation_tokens(answer.get(), ids.data(), logprobs.data(), count, &count); });
  ids.resize(count);
  logprobs.resize(count);
  return {std::move(ids), std::move(logprobs)};
}

}  // namespace

void bind_session(nb::module_& top) {
  nb::module_ module = top.def_submodule("session");
  nb::class_<Engine>(module, "Engine")
      .def(nb::new_(&make_engine), "folder"_a, "device"_a, "weights"_a, "products"_a, "kv_bytes"_a,
           "max_generations"_a, "max_waiting"_a, "threads"_a, "prefill_tokens"_a, "cuda_graphs"_a.none())
      .def_ro("info", &Engine::info)
      .def("stats", &stats_of)
      .def("chat", &chat, "request"_a)
      .def("drain", [](Engine& engine, int64_t timeout_ms) {
        run([&] { return earnest_engine_drain(engine.get(), timeout_ms); });
      });
  nb::class_<Session>(module, "Session")
      .def(nb::new_(&make_session), "engine"_a, "template"_a, "strip"_a, "tools"_a.none())
      .def_static("load", &load_session, "engine"_a, "path"_a)
      .def("fork", &fork)
      .def("add_text", &add_text, "role"_a, "text"_a)
      .def("add_answer", &add_answer, "reasoning"_a.none(), "reply"_a)
      .def("end_message", [](Session& s) { run([&] { return earnest_session_end_message(s.get()); }); })
      .def("truncate",
           [](Session& s, size_t count) { run([&] { return earnest_session_truncate(s.get(), count); }); })
      .def("warm", [](Session& s) { run([&] { return earnest_session_warm(s.get()); }); })
      .def("save",
           [](Session& s, const std::string& path) {
             const char* file = c_text(path);
             run([&] { return earnest_session_save(s.get(), file); });
           })
      .def("tokens", &tokens_of, "message"_a)
      .def("__len__", [](const Session& s) { return earnest_session_message_count(s.get()); });
  nb::class_<Clip>(module, "Clip")
      .def(nb::new_(&make_clip), "session"_a, "role"_a, "sample_rate"_a, "channels"_a)
      .def("push", &push_float, "pcm"_a.noconvert())
      .def("push", &push_short, "pcm"_a.noconvert())
      .def("clear", [](Clip& clip) { run([&] { return earnest_audio_clear(clip.get()); }); })
      .def("commit", [](Clip& clip) { run([&] { return earnest_audio_commit(clip.get()); }); })
      .def_prop_ro("seconds", [](const Clip& clip) { return earnest_audio_seconds(clip.get()); });
  nb::class_<Answer>(module, "Answer")
      .def(nb::new_(&start), "session"_a, "max_tokens"_a, "thinking"_a, "temperature"_a, "top_k"_a, "top_p"_a,
           "min_p"_a, "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "seed"_a, "stop"_a,
           "stop_ids"_a, "prefill"_a.none())
      .def("next", &next, "timeout_ms"_a)
      .def("cancel",
           [](Answer& answer) {
             nb::gil_scoped_release release;
             earnest_generation_cancel(answer.get());
           })
      .def("usage", &usage_of)
      .def("tokens", &tokens)
      .def_prop_ro("reasoning", [](Answer& a) { return said(earnest_generation_reasoning, a); })
      .def_prop_ro("reply", [](Answer& a) { return said(earnest_generation_reply, a); });
}

}  // namespace earnest::bindings
