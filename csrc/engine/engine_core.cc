// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/engine_core.h"

#include <algorithm>

#include "csrc/engine/guard.h"
#include "csrc/engine/scheduler.h"

namespace earnest::engine {

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

EngineCore::EngineCore(std::shared_ptr<const LoadedModel> loaded, const EngineOptions& asked,
                       std::shared_ptr<KVPool> pool)
    : model(std::move(loaded)), options(asked), prefixes(std::move(pool)) {}

void EngineCore::run() {
  thread_ = std::thread([this] { Scheduler(this).run(); });
}

EngineCore::~EngineCore() {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    stopping = true;
  }
  work.notify_all();
  if (thread_.joinable()) thread_.join();
  // An answer and its session hold each other while it runs.
  for (const auto& session : sessions) session->answer.reset();
}

void EngineCore::read_ahead(const std::shared_ptr<SessionState>& session) {
  if (session->reading_ahead || session->prefix->pending() == 0) return;
  session->reading_ahead = true;
  idle.push_back(session);
  work.notify_all();
}

void EngineCore::stop_reading_ahead(const std::shared_ptr<SessionState>& session) {
  std::erase(idle, session);
  session->reading_ahead = false;
}

void EngineCore::abandon(const std::shared_ptr<SessionState>& session) {
  session->abandoned = true;
  retire_if_abandoned(session);
}

void EngineCore::retire_if_abandoned(const std::shared_ptr<SessionState>& session) {
  const bool in_use = session->answer != nullptr || session->speaking || session->prefix->in_use > 0;
  if (!session->abandoned || in_use) return;
  prefixes.truncate(session->prefix.get(), session->prefix->computed);
  prefixes.keep(session->prefix);
  sessions.erase(session);
}

std::shared_ptr<HeardChunk> EngineCore::known(std::shared_ptr<HeardChunk> chunk) {
  std::weak_ptr<HeardChunk>& place = chunks_[std::string(chunk->digest.begin(), chunk->digest.end())];
  if (auto there = place.lock(); there != nullptr) return there;
  place = chunk;
  if (chunks_.size() > chunks_checked_) {
    std::erase_if(chunks_, [](const auto& entry) { return entry.second.expired(); });
    chunks_checked_ = 2 * chunks_.size() + 64;
  }
  return chunk;
}

void EngineCore::replace_tail(SessionState* session, int64_t from, const Piece& piece) {
  const Transcript& old = session->prefix->tokens;
  const auto count = static_cast<int64_t>(piece.ids.size());
  const int64_t most = std::min(count, old.size() - from);
  int64_t same = std::mismatch(piece.ids.begin(), piece.ids.begin() + most, old.ids().begin() + from).first -
                 piece.ids.begin();
  auto there = old.audio_from(from);
  for (const AudioPlace& place : piece.audio) {
    const int64_t start = place.start;
    if (start >= same) break;
    const bool alike = there != old.audio().end() && there->start == from + start &&
                       there->chunk->digest == place.chunk->digest && start + place.chunk->rows <= same;
    if (!alike) {
      same = start;
      break;
    }
    ++there;
  }
  prefixes.truncate(session->prefix.get(), from + same);
  std::vector<AudioPlace> rest;
  for (const AudioPlace& place : piece.audio) {
    if (place.start >= same) rest.push_back({place.start - same, place.chunk});
  }
  session->prefix->tokens.append(std::span(piece.ids).subspan(static_cast<size_t>(same)), rest);
}

Status EngineCore::check_queue() const {
  if (draining)
    return {StatusCode::kBusy, "[generate] engine: expected one that takes answers, got one that drains"};
  const auto most = static_cast<size_t>(options.max_generations + options.max_waiting);
  if (waiting.size() + running.size() >= most) {
    return {StatusCode::kBusy, "[generate] queue: expected fewer than " + std::to_string(most) +
                                   " answers that run or wait, got as many"};
  }
  return {};
}

void EngineCore::enqueue(const std::shared_ptr<AnswerState>& answer) {
  answer->started = Clock::now();
  waiting.push_back(answer);
  stop_reading_ahead(answer->session);
  answer->session->answer = answer;
  work.notify_all();
}

void EngineCore::post(const std::shared_ptr<AnswerState>& answer, Event event) {
  answer->events.push(std::move(event));
  if (!answer->has_callback) return;
  to_deliver.push_back(answer);
  work.notify_all();
}

void EngineCore::post(const std::shared_ptr<AnswerState>& answer, std::vector<Delta> deltas) {
  for (Delta& delta : deltas) {
    Event event;
    event.kind = delta.channel == Channel::kReply ? EventKind::kReply : EventKind::kReasoning;
    event.text = std::move(delta.text);
    post(answer, std::move(event));
  }
}

void EngineCore::finish(const std::shared_ptr<AnswerState>& answer, Finish how, Status why) {
  if (answer->finish != Finish::kNone) return;
  const std::shared_ptr<SessionState> session = answer->session;
  answer->finish = how;
  short_of_room = false;
  if (std::erase(running, answer) > 0) {
    --session->prefix->in_use;
  } else {
    std::erase(waiting, answer);
  }
  Event done;
  done.kind = EventKind::kDone;
  const Status closed = guarded("generate", [&] {
    post(answer, answer->text.finish());
    return close_message(answer.get());
  });
  if (!closed.ok()) {
    answer->finish = Finish::kError;
    why = closed;
    prefixes.truncate(session->prefix.get(), answer->begin);
  }
  session->answer.reset();
  answer->usage.total_ms = milliseconds(answer->started, Clock::now());
  done.finish = answer->finish;
  done.status = std::move(why);
  post(answer, std::move(done));
  if (session->options.strip_history) read_ahead(session);
  retire_if_abandoned(session);
  ended.notify_all();
  work.notify_all();
}

namespace {

// Whether there is a thought in an answer, its given beginning included, and the reply behind it.
bool reply_after_thought(const AnswerState& answer, std::string* reply) {
  const std::string& prefill = answer.options.prefill;
  ReasoningStream stream(answer.text.began_inside_thought() && prefill.empty());
  for (const auto& deltas : {stream.push(prefill + answer.text.said()), stream.finish()}) {
    for (const Delta& delta : deltas) *reply += delta.channel == Channel::kReply ? delta.text : "";
  }
  return stream.thought_seen();
}

}  // namespace

// What was said becomes the session's last message.
Status EngineCore::close_message(AnswerState* answer) {
  SessionState& session = *answer->session;
  Prefix* prefix = session.prefix.get();
  if (answer->finish == Finish::kError || answer->drawn.empty()) {
    prefixes.truncate(prefix, answer->begin);
    return {};
  }
  const AnswerText& text = answer->text;
  Piece piece;
  std::string reply;
  if (session.options.strip_history && reply_after_thought(*answer, &reply)) {
    EARNEST_RETURN_IF_ERROR(ids_of_answer(nullptr, reply, false, *model, session.options, &piece));
    replace_tail(&session, answer->begin, piece);
  } else {
    if (text.stopped()) {
      EARNEST_RETURN_IF_ERROR(text.ids_before_stop(answer->drawn, &piece.ids));
      replace_tail(&session, answer->prompt_end, piece);
    }
    const int32_t eot = model->special().eot;
    if (session.options.template_name == TemplateName::kCanonical) prefix->tokens.append({&eot, 1});
  }
  session.ends.push_back(prefix->tokens.size());
  return {};
}

}  // namespace earnest::engine
