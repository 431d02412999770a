// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/answer.h"

#include <algorithm>
#include <string>

#include "csrc/engine/dialogue.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/step.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

Status check(const AnswerOptions& options, int64_t vocabulary) {
  EARNEST_RETURN_IF_ERROR(check_sampling(options.sampling, vocabulary));
  if (options.max_tokens < 0) {
    return invalid_argument("generate", "max_tokens", "0 or more", std::to_string(options.max_tokens));
  }
  for (const std::string& text : options.stop) {
    if (text.empty() || find_invalid(text) != text.size()) {
      return invalid_argument("generate", "stop", "texts in UTF-8, not empty", "an empty or another one");
    }
  }
  for (const int32_t id : options.stop_ids) {
    if (id < 0 || id >= vocabulary) {
      return invalid_argument("generate", "stop_ids", "ids of the vocabulary", std::to_string(id));
    }
  }
  if (!options.prefill.empty() && options.thinking == Thinking::kOn) {
    return invalid_argument("generate", "prefill", "none where a thought is opened", "one");
  }
  return {};
}

Prompt prompt_of(Thinking thinking) {
  return thinking == Thinking::kOn    ? Prompt::kThink
         : thinking == Thinking::kOff ? Prompt::kPlain
                                      : Prompt::kHabit;
}

}  // namespace

Answer::Answer(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}

Answer::~Answer() {
  if (state_ == nullptr) return;  // it never started
  cancel();
  const std::lock_guard<std::mutex> lock(state_->callback_mutex);
  state_->callback = nullptr;
}

Status Answer::start(Session* session, const AnswerOptions& options, std::unique_ptr<Answer>* answer) {
  EngineCore& core = session->engine()->core();
  const LoadedModel& model = *core.model;
  return guarded("generate", [&]() -> Status {
    const std::shared_ptr<SessionState>& state = session->state();
    EARNEST_RETURN_IF_ERROR(check(options, model.config().text.vocab_size));
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state, false));
    if (state->ends.empty() && !state->open) {
      return invalid_argument("generate", "session", "a message at least", "none");
    }
    Piece message, prompt;
    if (state->open) {
      EARNEST_RETURN_IF_ERROR(ids_of(*state->open, state->ends.empty(), model, state->options, &message));
    }
    EARNEST_RETURN_IF_ERROR(
        ids_of_prompt(prompt_of(options.thinking), options.prefill, model, state->options, &prompt));
    auto made = std::make_shared<AnswerState>(model, options, prompt.inside_thought);
    std::unique_ptr<Answer> handle(new Answer(session->engine()));
    made->session = state;

    const std::lock_guard<std::mutex> lock(core.mutex);
    const auto read = static_cast<int64_t>(message.ids.size() + prompt.ids.size()) + state->closed();
    const int64_t most = std::min(model.context(), core.prefixes.pool().tokens());
    if (read >= most) {
      return {StatusCode::kContextFull, "[generate] dialogue: expected fewer than " + std::to_string(most) +
                                            " tokens, got " + std::to_string(read)};
    }
    made->most_tokens = options.max_tokens == 0 ? most - read : std::min(options.max_tokens, most - read);
    EARNEST_RETURN_IF_ERROR(core.check_queue());
    if (state->open) {
      core.replace_tail(state.get(), state->closed(), message);
      state->ends.push_back(state->prefix->tokens.size());
      state->open.reset();
    }
    Transcript& tokens = state->prefix->tokens;
    made->begin = tokens.size();
    tokens.append(prompt.ids);
    made->prompt_end = made->usage.prompt_tokens = tokens.size();
    for (const AudioPlace& place : tokens.audio()) made->usage.audio_tokens += place.chunk->rows;
    made->sampler.heard(tokens.ids());
    core.enqueue(made);
    handle->state_ = std::move(made);
    *answer = std::move(handle);
    return {};
  });
}

Status Answer::next(int64_t timeout_ms, Event* event) {
  if (state_->has_callback) {
    return invalid_argument("generation", "next", "no callback", "one");
  }
  if (handed_out_done_) {
    const std::lock_guard<std::mutex> lock(engine_->core().mutex);
    if (state_->finish == Finish::kCancelled) {
      return {StatusCode::kCancelled,
              "[generation] next: expected an answer that goes on, got one cancelled"};
    }
    return invalid_argument("generation", "next", "an answer that goes on", "one that is done");
  }
  return guarded("generation", [&]() -> Status {
    if (!state_->events.wait(timeout_ms, event)) {
      return {StatusCode::kTimeout,
              "[generation] next: expected an event in " + std::to_string(timeout_ms) + " ms, got none"};
    }
    handed_out_done_ = event->kind == EventKind::kDone;
    fetched_ = true;
    return {};
  });
}

Status Answer::set_callback(std::function<void(const Event&)> callback) {
  if (fetched_ || state_->has_callback || !callback) {
    return invalid_argument("generation", "callback", "one, before the first event is fetched",
                            callback ? "a late or a second one" : "none");
  }
  return guarded("generation", [&]() -> Status {
    {
      const std::lock_guard<std::mutex> lock(state_->callback_mutex);
      state_->callback = std::move(callback);
    }
    EngineCore& core = engine_->core();
    const std::lock_guard<std::mutex> lock(core.mutex);
    state_->has_callback = true;
    core.to_deliver.push_back(state_);
    core.work.notify_all();
    return {};
  });
}

void Answer::cancel() {
  EngineCore& core = engine_->core();
  const std::lock_guard<std::mutex> lock(core.mutex);
  core.finish(state_, Finish::kCancelled);
}

bool Answer::done() const {
  const std::lock_guard<std::mutex> lock(engine_->core().mutex);
  return state_->finish != Finish::kNone;
}

Usage Answer::usage() const {
  const std::lock_guard<std::mutex> lock(engine_->core().mutex);
  Usage usage = state_->usage;
  if (state_->finish == Finish::kNone) usage.total_ms = milliseconds(state_->started, Clock::now());
  return usage;
}

std::string Answer::reasoning() const {
  const std::lock_guard<std::mutex> lock(engine_->core().mutex);
  return state_->text.reasoning();
}

std::string Answer::reply() const {
  const std::lock_guard<std::mutex> lock(engine_->core().mutex);
  return state_->text.reply();
}

Status Answer::tokens(std::vector<int32_t>* ids, std::vector<float>* logp) const {
  EngineCore& core = engine_->core();
  return guarded("generation", [&]() -> Status {
    std::vector<char> hidden;
    std::vector<int64_t> unrated;
    {
      const std::lock_guard<std::mutex> lock(core.mutex);
      *ids = state_->drawn;
      if (logp == nullptr) return {};
      *logp = state_->logp;
      hidden = state_->unrated;
    }
    unrated.assign(ids->begin() + static_cast<int64_t>(logp->size()), ids->end());
    Arena arena;
    std::vector<float> more;
    EARNEST_RETURN_IF_ERROR(
        rate(core.model->model(), hidden, unrated, state_->options.sampling.temperature, &arena, &more));
    logp->insert(logp->end(), more.begin(), more.end());
    return {};
  });
}

}  // namespace earnest::engine
