// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/session.h"

#include "csrc/engine/dialogue.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/session_file.h"
#include "csrc/engine/spoken_clip.h"
#include "csrc/engine/tools.h"
#include "csrc/engine/utf8.h"
#include "csrc/engine/wav.h"

namespace earnest::engine {
namespace {

Status check_text(const char* name, std::string_view text) {
  const size_t wrong = find_invalid(text);
  if (wrong == text.size()) return {};
  return invalid_argument("session", name, "UTF-8", "other bytes at byte " + std::to_string(wrong));
}

// Sound that the whole context could not hold is refused before it is read.
double most_seconds(const LoadedModel& model) {
  constexpr double kTokensPerSecond = 12.5;
  return static_cast<double>(model.context()) / kTokensPerSecond + 30;
}

}  // namespace

Session::Session(std::shared_ptr<Engine> engine, std::shared_ptr<SessionState> state)
    : engine_(std::move(engine)), state_(std::move(state)) {}

Session::~Session() {
  EngineCore& core = engine_->core();
  const std::lock_guard<std::mutex> lock(core.mutex);
  core.abandon(state_);
}

Status Session::open(const std::shared_ptr<Engine>& engine, std::shared_ptr<SessionState> state,
                     std::unique_ptr<Session>* session) {
  EngineCore& core = engine->core();
  std::unique_ptr<Session> made;
  {
    const std::lock_guard<std::mutex> lock(core.mutex);
    core.sessions.insert(state);
  }
  session->reset(new Session(engine, std::move(state)));
  return {};
}

Status Session::create(const std::shared_ptr<Engine>& engine, const SessionOptions& options,
                       std::unique_ptr<Session>* session) {
  return guarded("session", [&]() -> Status {
    std::string shown;
    if (!options.tools.empty()) EARNEST_RETURN_IF_ERROR(tools_text(options.tools, &shown));
    auto state = std::make_shared<SessionState>();
    state->options = options;
    return open(engine, std::move(state), session);
  });
}

Status Session::add_text(std::string_view role, std::string_view text) {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, true));
    EARNEST_RETURN_IF_ERROR(check_text("text", text));
    return add_part(&core, state_.get(), role, std::string(text));
  });
}

Status Session::add_answer(const std::optional<std::string>& reasoning, std::string_view reply) {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, false));
    EARNEST_RETURN_IF_ERROR(check_text("reply", reply));
    if (reasoning) EARNEST_RETURN_IF_ERROR(check_text("reasoning", *reasoning));
    EARNEST_RETURN_IF_ERROR(close_open_message(&core, state_.get()));
    const bool with_thought = reasoning && !state_->options.strip_history;
    Piece piece;
    EARNEST_RETURN_IF_ERROR(ids_of_answer(with_thought ? &*reasoning : nullptr, reply, state_->ends.empty(),
                                          *core.model, state_->options, &piece));
    append_message(&core, state_.get(), piece);
    return {};
  });
}

Status Session::add_wav(std::string_view role, std::span<const std::byte> bytes) {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, false));
    const auto as_format = [](const Status& status) {
      const bool ours = status.code() == StatusCode::kInvalidArgument;
      return ours ? Status(StatusCode::kAudioFormat, status.message()) : status;
    };
    Wav wav;
    Status status = read_wav(bytes, most_seconds(*core.model), &wav);
    if (!status.ok()) return as_format(status);
    if (wav.samples.empty()) return check_role(role);
    std::unique_ptr<SpokenClip> clip;
    if (wav.rate < kLowestRate || wav.rate > kHighestRate) {
      status = SpokenClip::create(*this, role, wav.rate, 1, &clip);
      return as_format(status);
    }
    EARNEST_RETURN_IF_ERROR(SpokenClip::create(*this, role, wav.rate, 1, &clip));
    EARNEST_RETURN_IF_ERROR(clip->push(std::span<const float>(wav.samples)));
    return clip->commit();
  });
}

Status Session::end_message() {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, false));
    return close_open_message(&core, state_.get());
  });
}

size_t Session::message_count() const {
  const std::lock_guard<std::mutex> lock(engine_->core().mutex);
  return state_->ends.size() + (state_->open ? 1 : 0);
}

Status Session::message_tokens(size_t message, size_t* tokens) const {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    const size_t count = message_count();
    if (message >= count) {
      return invalid_argument("session", "message", "below " + std::to_string(count),
                              std::to_string(message));
    }
    std::unique_lock<std::mutex> lock(core.mutex);
    const auto& ends = state_->ends;
    if (message < ends.size()) {
      *tokens = static_cast<size_t>(ends[message] - (message == 0 ? 0 : ends[message - 1]));
      return {};
    }
    lock.unlock();
    Piece piece;
    EARNEST_RETURN_IF_ERROR(ids_of(*state_->open, message == 0, *core.model, state_->options, &piece));
    *tokens = piece.ids.size();
    return {};
  });
}

Status Session::fork(std::unique_ptr<Session>* fork) const {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, false));
    auto state = std::make_shared<SessionState>();
    {
      const std::lock_guard<std::mutex> lock(core.mutex);
      state->options = state_->options;
      state->ends = state_->ends;
      state->open = state_->open;
      state->prefix->tokens = state_->prefix->tokens;
      state->prefix->untrusted = state_->prefix->untrusted;
    }
    return open(engine_, std::move(state), fork);
  });
}

Status Session::truncate(size_t messages) {
  EngineCore& core = engine_->core();
  EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, false));
  const std::lock_guard<std::mutex> lock(core.mutex);
  const size_t count = state_->ends.size() + (state_->open ? 1 : 0);
  if (messages > count) {
    return invalid_argument("session", "messages", "at most " + std::to_string(count),
                            std::to_string(messages));
  }
  if (messages == count) return {};
  state_->open.reset();
  state_->ends.resize(messages);
  core.prefixes.truncate(state_->prefix.get(), state_->closed());
  return {};
}

Status Session::warm() {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, true));
    EARNEST_RETURN_IF_ERROR(refresh_certain(&core, state_.get()));
    const std::lock_guard<std::mutex> lock(core.mutex);
    core.read_ahead(state_);
    return {};
  });
}

Status Session::save(const std::string& path) {
  EngineCore& core = engine_->core();
  return guarded("session", [&]() -> Status {
    EARNEST_RETURN_IF_ERROR(check_free(&core, *state_, false));
    return write_session(path, &core, state_);
  });
}

Status Session::load(const std::shared_ptr<Engine>& engine, const std::string& path,
                     std::unique_ptr<Session>* session) {
  return guarded("session", [&]() -> Status {
    std::shared_ptr<SessionState> state;
    EARNEST_RETURN_IF_ERROR(read_session(path, &engine->core(), &state));
    return open(engine, std::move(state), session);
  });
}

std::vector<int32_t> Session::ids() const {
  const std::lock_guard<std::mutex> lock(engine_->core().mutex);
  return state_->prefix->tokens.ids();
}

}  // namespace earnest::engine
