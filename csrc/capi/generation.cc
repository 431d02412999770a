// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>
#include <vector>

#include "csrc/capi/call.h"
#include "csrc/capi/handles.h"
#include "csrc/capi/results.h"
#include "csrc/capi/sized.h"

namespace earnest::capi {
namespace {

constexpr char kOp[] = "generation";
constexpr size_t kMostStops = 1024;

earnest_generation_params defaults() {
  earnest_generation_params params{};
  params.temperature = 0.7;
  params.top_p = 0.9;
  return params;
}

Outcome read_stops(const earnest_generation_params& params, engine::AnswerOptions* options) {
  for (const size_t count : {params.stop_count, params.stop_id_count}) {
    if (count <= kMostStops) continue;
    return invalid(kOp, "stop", "at most " + std::to_string(kMostStops), std::to_string(count));
  }
  if (params.stop_count > 0) EARNEST_RETURN_IF_FAILED(required(kOp, "stop", params.stop));
  for (size_t i = 0; i < params.stop_count; ++i) {
    EARNEST_RETURN_IF_FAILED(required(kOp, "stop[i]", params.stop[i]));
    options->stop.emplace_back(params.stop[i]);
    if (options->stop.back().empty()) return invalid(kOp, "stop", "texts", "an empty one");
  }
  if (params.stop_id_count > 0) {
    EARNEST_RETURN_IF_FAILED(required(kOp, "stop_ids", params.stop_ids));
    options->stop_ids.assign(params.stop_ids, params.stop_ids + params.stop_id_count);
  }
  return {};
}

Outcome options_of(const earnest_generation_params& params, engine::AnswerOptions* options) {
  options->max_tokens = params.max_tokens;
  const int thinking = number_of(params.thinking);
  switch (thinking) {
    case EARNEST_THINKING_AUTO:
      options->thinking = engine::Thinking::kAuto;
      break;
    case EARNEST_THINKING_ON:
      options->thinking = engine::Thinking::kOn;
      break;
    case EARNEST_THINKING_OFF:
      options->thinking = engine::Thinking::kOff;
      break;
    default:
      return invalid(kOp, "thinking", "one of earnest_thinking", std::to_string(thinking));
  }
  options->sampling.temperature = params.temperature;
  options->sampling.top_k = params.top_k;
  options->sampling.top_p = params.top_p == 0 ? 1.0 : params.top_p;
  options->sampling.min_p = params.min_p;
  options->sampling.repetition_penalty = params.repetition_penalty == 0 ? 1.0 : params.repetition_penalty;
  options->sampling.presence_penalty = params.presence_penalty;
  options->sampling.frequency_penalty = params.frequency_penalty;
  options->seed = params.seed;
  if (params.prefill) options->prefill = params.prefill;
  return read_stops(params, options);
}

earnest_event_kind kind_of(engine::EventKind kind) {
  switch (kind) {
    case engine::EventKind::kPrefill:
      return EARNEST_EVENT_PREFILL;
    case engine::EventKind::kReasoning:
      return EARNEST_EVENT_REASONING;
    case engine::EventKind::kReply:
      return EARNEST_EVENT_REPLY;
    case engine::EventKind::kDone:
      return EARNEST_EVENT_DONE;
  }
  return EARNEST_EVENT_NONE;
}

earnest_finish_reason reason_of(engine::Finish finish) {
  switch (finish) {
    case engine::Finish::kNone:
      return EARNEST_FINISH_NONE;
    case engine::Finish::kStop:
      return EARNEST_FINISH_STOP;
    case engine::Finish::kLength:
      return EARNEST_FINISH_LENGTH;
    case engine::Finish::kCancelled:
      return EARNEST_FINISH_CANCELLED;
    case engine::Finish::kError:
      return EARNEST_FINISH_ERROR;
  }
  return EARNEST_FINISH_ERROR;
}

// The event as C sees it; its text lives where the event does.
earnest_event shown(const engine::Event& event) {
  earnest_event made = EARNEST_EVENT_INIT;
  made.kind = kind_of(event.kind);
  if (event.kind == engine::EventKind::kReasoning || event.kind == engine::EventKind::kReply) {
    made.text = event.text.c_str();
    made.text_bytes = event.text.size();
  }
  made.done = narrow(event.done);
  made.total = narrow(event.total);
  made.finish_reason = reason_of(event.finish);
  made.status = Outcome(event.status).status();
  return made;
}

// What was said so far, kept where the caller may look at it; "" where memory ran out.
const char* kept(std::string (engine::Answer::*text)() const, std::string earnest_generation::* place,
                 earnest_generation* generation, size_t* bytes) {
  if (bytes) *bytes = 0;
  const earnest_status status = call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "generation", generation));
    generation->*place = (generation->answer.get()->*text)();
    return {};
  });
  if (status != EARNEST_OK) return "";
  if (bytes) *bytes = (generation->*place).size();
  return (generation->*place).c_str();
}

}  // namespace
}  // namespace earnest::capi

using namespace earnest::capi;

void earnest_generation_params_default(earnest_generation_params* params, size_t struct_size) {
  write_defaults(defaults(), params, struct_size);
}

earnest_status earnest_generation_start(earnest_session* session, const earnest_generation_params* params,
                                        earnest_generation** generation) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "generation", generation));
    *generation = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "session", session));
    earnest_generation_params chosen = defaults();
    EARNEST_RETURN_IF_FAILED(read_params(kOp, params, &chosen));
    earnest::engine::AnswerOptions options;
    EARNEST_RETURN_IF_FAILED(options_of(chosen, &options));
    auto handle = std::make_unique<earnest_generation>();
    EARNEST_RETURN_IF_FAILED(
        earnest::engine::Answer::start(session->session.get(), options, &handle->answer));
    *generation = handle.release();
    return {};
  });
}

earnest_status earnest_generation_next(earnest_generation* generation, int64_t timeout_ms,
                                       earnest_event* event) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "generation", generation));
    EARNEST_RETURN_IF_FAILED(required(kOp, "event", event));
    EARNEST_RETURN_IF_FAILED(check_size<earnest_event>(kOp, "event", event->struct_size));
    earnest::engine::Event next;
    EARNEST_RETURN_IF_FAILED(generation->answer->next(timeout_ms, &next));
    generation->event = std::move(next);
    write_struct(shown(generation->event), event);
    // The call went well; why the answer did not is there to be asked for.
    const earnest::Status& why = generation->event.status;
    if (!why.ok()) remember(Outcome(why).status(), why.message());
    return {};
  });
}

earnest_status earnest_generation_set_callback(earnest_generation* generation,
                                               earnest_event_callback callback, void* user_data) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "generation", generation));
    if (!callback) return invalid(kOp, "callback", "a function", "NULL");
    return generation->answer->set_callback([callback, user_data](const earnest::engine::Event& event) {
      const earnest_event made = shown(event);
      callback(&made, user_data);
    });
  });
}

void earnest_generation_cancel(earnest_generation* generation) {
  if (!generation) return;
  (void)call(kOp, [&]() -> Outcome {
    generation->answer->cancel();
    return {};
  });
}

earnest_status earnest_generation_get_usage(const earnest_generation* generation, earnest_usage* usage) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "generation", generation));
    EARNEST_RETURN_IF_FAILED(required(kOp, "usage", usage));
    EARNEST_RETURN_IF_FAILED(check_size<earnest_usage>(kOp, "usage", usage->struct_size));
    const earnest::engine::Usage now = generation->answer->usage();
    earnest_usage made = EARNEST_USAGE_INIT;
    made.prompt_tokens = static_cast<uint64_t>(now.prompt_tokens);
    made.cached_tokens = static_cast<uint64_t>(now.cached_tokens);
    made.audio_tokens = static_cast<uint64_t>(now.audio_tokens);
    made.completion_tokens = static_cast<uint64_t>(now.completion_tokens);
    made.reasoning_tokens = static_cast<uint64_t>(now.reasoning_tokens);
    made.waiting_ms = now.waiting_ms;
    made.prefill_ms = now.prefill_ms;
    made.first_token_ms = now.first_token_ms;
    made.total_ms = now.total_ms;
    write_struct(made, usage);
    return {};
  });
}

const char* earnest_generation_reasoning(earnest_generation* generation, size_t* bytes) {
  return kept(&earnest::engine::Answer::reasoning, &earnest_generation::reasoning, generation, bytes);
}

const char* earnest_generation_reply(earnest_generation* generation, size_t* bytes) {
  return kept(&earnest::engine::Answer::reply, &earnest_generation::reply, generation, bytes);
}

earnest_status earnest_generation_tokens(earnest_generation* generation, int32_t* ids, float* logprobs,
                                         size_t capacity, size_t* count) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "generation", generation));
    EARNEST_RETURN_IF_FAILED(required(kOp, "count", count));
    std::vector<int32_t> drawn;
    std::vector<float> logp;
    EARNEST_RETURN_IF_FAILED(generation->answer->tokens(&drawn, logprobs ? &logp : nullptr));
    *count = drawn.size();
    if (drawn.size() > capacity) {
      return invalid(kOp, "capacity", std::to_string(drawn.size()) + " or more", std::to_string(capacity));
    }
    if (ids) std::copy(drawn.begin(), drawn.end(), ids);
    if (logprobs) std::copy(logp.begin(), logp.end(), logprobs);
    return {};
  });
}

void earnest_generation_destroy(earnest_generation* generation) { delete generation; }
