// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/scheduler.h"

#include <algorithm>

#include "csrc/engine/guard.h"

namespace earnest::engine {
namespace {

constexpr int64_t kLeastPiece = 64;    // of a prompt: smaller pieces cost more than they are worth
constexpr int64_t kAhead = 64;         // tokens of an answer that room is made for when it begins
constexpr int64_t kMostUnrated = 512;  // hidden states that wait for somebody to ask for log-probabilities

// The first chunk that the tokens from `position` on need and nobody has heard yet, or none.
const AudioPlace* next_unheard(const Prefix& prefix, int64_t position) {
  for (auto place = prefix.tokens.audio_from(position); place != prefix.tokens.audio().end(); ++place) {
    if (!place->chunk->heard) return &*place;
  }
  return nullptr;
}

}  // namespace

Scheduler::Scheduler(EngineCore* core)
    : core_(*core),
      row_bytes_(static_cast<size_t>(core->model->config().text.hidden_size) *
                 size_of(core->model->model().precision())),
      graphs_(core->options.cuda_graphs) {}

bool Scheduler::something_to_do() const {
  return core_.stopping || !core_.nothing_runs() || !core_.idle.empty() || !core_.to_deliver.empty();
}

void Scheduler::run() {
  std::unique_lock<std::mutex> lock(core_.mutex);
  while (true) {
    core_.work.wait(lock, [this] { return something_to_do(); });
    if (core_.stopping) return;
    Step step;
    const Status planned = guarded("engine", [&] { return plan(&step); });
    if (!planned.ok()) fail_all(planned);
    const bool stuck = step.empty() && core_.to_deliver.empty();
    if (!step.empty()) {
      lock.unlock();
      compute(core_.model->model(), &arena_, &graphs_, &step);
      lock.lock();
      core_.totals.plain_steps = graphs_.counts().plain;
      core_.totals.graph_steps = graphs_.counts().replayed;
      core_.totals.recorded_graphs = graphs_.counts().recorded;
      core_.totals.graph_trouble = graphs_.trouble();
      apply(&step);
    }
    delivering_.clear();
    delivering_.swap(core_.to_deliver);
    lock.unlock();
    deliver();
    lock.lock();
    // All room is held by files that are being written: nothing to do but to wait for them.
    if (stuck && !core_.stopping) core_.work.wait_for(lock, std::chrono::milliseconds(1));
  }
}

void Scheduler::deliver() const {
  for (const Answering& answer : delivering_) {
    const std::lock_guard<std::mutex> lock(answer->callback_mutex);
    Event event;
    while (answer->callback && answer->events.pop(&event)) answer->callback(event);
  }
}

// What no answer alone is to blame for, such as memory that ran out while a step was planned.
void Scheduler::fail_all(const Status& why) {
  while (!core_.running.empty()) core_.finish(core_.running.back(), Finish::kError, why);
  while (!core_.waiting.empty()) core_.finish(core_.waiting.back(), Finish::kError, why);
  for (const auto& session : core_.idle) session->reading_ahead = false;
  core_.idle.clear();
}

Status Scheduler::plan(Step* step) {
  EARNEST_RETURN_IF_ERROR(admit());
  EARNEST_RETURN_IF_ERROR(add_answers(step));
  EARNEST_RETURN_IF_ERROR(add_prompts(step));
  if (core_.nothing_runs()) EARNEST_RETURN_IF_ERROR(add_read_ahead(step));
  add_ratings(step);
  ++core_.totals.steps;
  return {};
}

// From those who wait, in their order.
Status Scheduler::admit() {
  while (!core_.short_of_room && !core_.waiting.empty() &&
         static_cast<int64_t>(core_.running.size()) < core_.options.max_generations) {
    const Answering answer = core_.waiting.front();
    const Status status = start(answer);
    if (status.ok()) continue;
    if (status.code() != StatusCode::kContextFull) {
      core_.finish(answer, Finish::kError, status);
    } else if (core_.prefixes.any_in_use_but(answer->session->prefix.get())) {
      break;  // until somebody else has ended
    } else {
      core_.finish(answer, Finish::kError, status);
    }
  }
  return {};
}

Status Scheduler::start(const Answering& answer) {
  Prefix* prefix = answer->session->prefix.get();
  EARNEST_RETURN_IF_ERROR(core_.prefixes.settle(prefix));
  // Who holds room enough is not to look for the same tokens elsewhere.
  if (prefix->pending() > Transcript::kBlock) {
    const Status reused = core_.prefixes.reuse(prefix, true);
    if (!reused.ok() && reused.code() != StatusCode::kContextFull) return reused;
  }
  const auto left = answer->most_tokens - static_cast<int64_t>(answer->drawn.size());
  const int64_t size = prefix->tokens.size();
  EARNEST_RETURN_IF_ERROR(core_.prefixes.reserve(prefix, size + std::min<int64_t>(left, kAhead),
                                                 size + std::min<int64_t>(left, size / 4 + 4 * kAhead)));
  ++prefix->in_use;
  core_.running.push_back(answer);
  core_.waiting.pop_front();
  if (answer->admitted != Clock::time_point()) return {};  // it ran before, and had to give up its room
  answer->admitted = Clock::now();
  answer->usage.waiting_ms = milliseconds(answer->started, answer->admitted);
  answer->usage.cached_tokens = prefix->computed;
  core_.totals.prompt_tokens += answer->usage.prompt_tokens;
  core_.totals.cached_tokens += prefix->computed;
  return {};
}

// The next token of each answer that has read its prompt.
Status Scheduler::add_answers(Step* step) {
  const std::vector<Answering> order = core_.running;
  for (const Answering& answer : order) {
    if (answer->finish != Finish::kNone || answer->session->prefix->in_use == 0)
      continue;  // gave up its room
    if (answer->session->prefix->pending() != 1) continue;
    bool found = false;
    EARNEST_RETURN_IF_ERROR(make_room(answer, &found));
    if (found && readable(*answer->session->prefix, 1, step) == 1) {
      add_row(answer->session, answer, 1, step);
    }
  }
  return {};
}

// Room for the answer's next token. Those that began later give way.
Status Scheduler::make_room(const Answering& answer, bool* found) {
  Prefix* prefix = answer->session->prefix.get();
  EARNEST_RETURN_IF_ERROR(core_.prefixes.settle(prefix));
  const int64_t size = prefix->tokens.size();
  const auto left = answer->most_tokens - static_cast<int64_t>(answer->drawn.size());
  const int64_t wanted = std::min(size + size / 2 + kAhead, size + left);
  while (true) {
    const Status status = core_.prefixes.reserve(prefix, size, wanted);
    *found = status.ok();
    if (status.ok() || status.code() != StatusCode::kContextFull) return status;
    const Answering youngest = core_.running.back();
    if (youngest == answer) break;
    preempt(youngest);
  }
  if (!core_.prefixes.any_in_use_but(prefix)) core_.finish(answer, Finish::kLength);
  return {};
}

void Scheduler::preempt(const Answering& answer) {
  Prefix* prefix = answer->session->prefix.get();
  --prefix->in_use;
  if (prefix->in_use == 0) core_.prefixes.evict(prefix);
  std::erase(core_.running, answer);
  core_.waiting.push_front(answer);
  core_.short_of_room = true;
}

// How many of the next tokens can be read in this step; sound that nobody has heard comes first.
int64_t Scheduler::readable(const Prefix& prefix, int64_t count, Step* step) const {
  const AudioPlace* place = next_unheard(prefix, prefix.computed);
  if (place == nullptr || place->start >= prefix.computed + count) return count;
  if (step->chunk == nullptr) step->chunk = place->chunk;
  return std::max<int64_t>(place->start - prefix.computed, 0);
}

void Scheduler::add_row(const std::shared_ptr<SessionState>& session, const Answering& answer, int64_t count,
                        Step* step) const {
  Prefix& prefix = *session->prefix;
  step->rows.emplace_back();
  StepRow& row = step->rows.back();
  row.session = session;
  row.prefix = session->prefix;
  row.answer = answer;
  gather(prefix.tokens, prefix.computed, count, row_bytes_, &row);
  row.draws = answer != nullptr && count == prefix.pending();
  if (row.draws) row.index = answer->drawn.size();
  prefix.agreed = INT64_MAX;
  ++prefix.in_use;
}

Status Scheduler::add_prompts(Step* step) {
  std::vector<Answering> prompts;
  for (const Answering& answer : core_.running) {
    if (answer->session->prefix->pending() > 1) prompts.push_back(answer);
  }
  if (prompts.empty()) return {};
  const auto count = static_cast<int64_t>(prompts.size());
  const int64_t share = std::max(kLeastPiece, core_.options.prefill_tokens / count);
  int64_t left = core_.options.prefill_tokens;
  const size_t first = turn_++;
  for (size_t i = 0; i < prompts.size() && left > 0; ++i) {
    const Answering& answer = prompts[(first + i) % prompts.size()];
    Prefix* prefix = answer->session->prefix.get();
    EARNEST_RETURN_IF_ERROR(core_.prefixes.settle(prefix));
    const int64_t tokens = readable(*prefix, std::min({prefix->pending(), share, left}), step);
    if (tokens == 0) continue;
    add_row(answer->session, answer, tokens, step);
    left -= tokens;
  }
  return {};
}

// A piece of one dialogue that nobody asked about yet.
Status Scheduler::add_read_ahead(Step* step) {
  while (!core_.idle.empty() && step->empty()) {
    const std::shared_ptr<SessionState> session = core_.idle.front();
    Prefix* prefix = session->prefix.get();
    core_.idle.pop_front();
    session->reading_ahead = false;
    if (session->abandoned || prefix->pending() == 0 || prefix->in_use > 0) continue;
    EARNEST_RETURN_IF_ERROR(core_.prefixes.settle(prefix));
    Status status = prefix->computed == 0 ? core_.prefixes.reuse(prefix, false) : Status();
    if (status.ok()) status = core_.prefixes.reserve(prefix, prefix->tokens.size(), 0);
    if (!status.ok()) continue;  // there is no room to read ahead
    const int64_t tokens = readable(*prefix, std::min(prefix->pending(), core_.options.prefill_tokens), step);
    if (tokens > 0) add_row(session, nullptr, tokens, step);
    core_.idle.push_back(session);
    session->reading_ahead = true;
  }
  return {};
}

void Scheduler::add_ratings(Step* step) const {
  for (const Answering& answer : core_.running) {
    const size_t rated = answer->logp.size();
    if (static_cast<int64_t>(answer->drawn.size() - rated) < kMostUnrated) continue;
    StepRating rating;
    rating.answer = answer;
    rating.tokens.assign(answer->drawn.begin() + static_cast<int64_t>(rated), answer->drawn.end());
    rating.hidden = answer->unrated;
    step->ratings.push_back(std::move(rating));
  }
}

void Scheduler::apply(Step* step) {
  for (StepRating& rating : step->ratings) {
    AnswerState& answer = *rating.answer;
    answer.logp.insert(answer.logp.end(), rating.logp.begin(), rating.logp.end());
    const size_t bytes = rating.logp.size() * row_bytes_;
    answer.unrated.erase(answer.unrated.begin(), answer.unrated.begin() + static_cast<int64_t>(bytes));
  }
  if (step->chunk != nullptr) apply_chunk(step);
  for (StepRow& row : step->rows) {
    Prefix* prefix = row.prefix.get();
    --prefix->in_use;
    core_.totals.read_tokens += static_cast<int64_t>(row.ids.size());
    if (row.read) prefix->computed = std::min(prefix->cache.length(), prefix->agreed);
    core_.prefixes.publish(prefix);
    if (!row.status.ok() && row.answer == nullptr) core_.stop_reading_ahead(row.session);
    if (row.answer == nullptr || row.answer->finish != Finish::kNone) {
      core_.retire_if_abandoned(row.session);
    } else if (!row.status.ok()) {
      core_.finish(row.answer, Finish::kError, row.status);
    } else {
      const Status status = guarded("generate", [&]() -> Status {
        advance(row.answer, &row);
        return {};
      });
      if (!status.ok()) core_.finish(row.answer, Finish::kError, status);
    }
  }
}

void Scheduler::apply_chunk(Step* step) {
  HeardChunk& chunk = *step->chunk;
  if (step->heard.ok()) {
    ++core_.totals.encoded_chunks;
    chunk.embeddings = std::move(step->embeddings);
    chunk.heard = true;
    PageVector<float>().swap(chunk.mel);
    PageVector<float>().swap(chunk.pcm);
    return;
  }
  const std::vector<Answering> running = core_.running;
  for (const Answering& answer : running) {
    const Prefix& prefix = *answer->session->prefix;
    const AudioPlace* place = next_unheard(prefix, prefix.computed);
    if (place != nullptr && place->chunk == step->chunk) {
      core_.finish(answer, Finish::kError, step->heard);
    }
  }
  std::erase_if(core_.idle, [&](const std::shared_ptr<SessionState>& session) {
    const AudioPlace* place = next_unheard(*session->prefix, session->prefix->computed);
    const bool waits = place != nullptr && place->chunk == step->chunk;
    if (waits) session->reading_ahead = false;
    return waits;
  });
}

void Scheduler::advance(const Answering& answer, StepRow* row) {
  const bool reading = answer->drawn.empty();
  if (reading) {
    Event event;
    event.kind = EventKind::kPrefill;
    event.done = answer->session->prefix->computed;
    event.total = answer->prompt_end;
    core_.post(answer, std::move(event));
  }
  if (!row->draws) return;
  if (reading) {
    const auto now = Clock::now();
    answer->usage.prefill_ms = milliseconds(answer->admitted, now);
    answer->usage.first_token_ms = milliseconds(answer->started, now);
  }
  answer->unrated.insert(answer->unrated.end(), row->hidden.begin(), row->hidden.end());
  take(answer, row->token);
}

void Scheduler::take(const Answering& answer, int32_t token) {
  answer->drawn.push_back(token);
  answer->sampler.said(token);
  ++core_.totals.completion_tokens;
  ++answer->usage.completion_tokens;
  const auto among = [&](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  const bool thought = answer->text.thinking();
  if (among(core_.model->stop_ids()) || among(answer->options.stop_ids)) {
    if (thought) answer->usage.reasoning_tokens = answer->usage.completion_tokens;
    core_.finish(answer, Finish::kStop);
    return;
  }
  answer->session->prefix->tokens.append({&token, 1});
  core_.post(answer, answer->text.push(token));
  if (thought || answer->text.thinking()) answer->usage.reasoning_tokens = answer->usage.completion_tokens;
  if (answer->text.stopped()) {
    core_.finish(answer, Finish::kStop);
  } else if (static_cast<int64_t>(answer->drawn.size()) >= answer->most_tokens) {
    core_.finish(answer, Finish::kLength);
  }
}

}  // namespace earnest::engine
