// SPDX-License-Identifier: Apache-2.0
// One answer of a session, as events. What it says depends on the dialogue, the options and the seed alone.
//
// When it is done, it is the session's last message, closed. Cancelled, what had been said so far is
// (nothing, where nothing had been said). Failed, the dialogue is as it was before.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/engine/sampler.h"
#include "csrc/engine/session.h"
#include "kernels/common/status.h"

namespace earnest::engine {

struct AnswerState;

enum class Thinking : uint8_t {
  kAuto,  // the template's habit
  kOn,    // the prompt opens a thought
  kOff,   // the prompt leaves it to the model
};

struct AnswerOptions {
  int64_t max_tokens = 0;  // 0: as many as there is room for; more than that is cut to it
  Thinking thinking = Thinking::kAuto;
  Sampling sampling;  // suppressed: in addition to the model's own
  uint64_t seed = 0;
  std::vector<std::string> stop;  // the answer ends before the first of these in the reply
  std::vector<int32_t> stop_ids;  // beside the model's own
  std::string prefill;            // the answer begins with this, verbatim; not with Thinking::kOn
};

enum class EventKind : uint8_t { kPrefill, kReasoning, kReply, kDone };
enum class Finish : uint8_t { kNone, kStop, kLength, kCancelled, kError };

struct Event {
  EventKind kind = EventKind::kPrefill;
  std::string text;             // kReasoning, kReply: whole characters
  int64_t done = 0, total = 0;  // kPrefill: tokens of the prompt
  Finish finish = Finish::kNone;
  Status status;  // kDone: why it failed
};

struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, audio_tokens = 0;  // cached and audio: of the prompt's
  int64_t completion_tokens = 0, reasoning_tokens = 0;             // reasoning: of the completion's
  double waiting_ms = 0, prefill_ms = 0, first_token_ms = 0, total_ms = 0;  // the last two: since the start
};

class Answer {
 public:
  // kBusy: the session is answering, or the queue is full. kContextFull: no room for one token more.
  static Status start(Session* session, const AnswerOptions& options, std::unique_ptr<Answer>* answer);
  ~Answer();  // cancels; waits for a callback that runs
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  // The next event; waits at most so many milliseconds (-1: for ever, 0: not at all), then kTimeout. After
  // kDone: kCancelled where it was cancelled, else kInvalidArgument. Events that nobody fetched are joined.
  Status next(int64_t timeout_ms, Event* event);

  // Events go to this function on the engine's thread instead, from the first on; only before the first
  // next(). It must not wait, nor throw, nor call anything here but cancel().
  Status set_callback(std::function<void(const Event&)> callback);

  // Ends it at once: the session may be changed when this returns. Again and afterwards it does nothing.
  void cancel();

  bool done() const;  // whether kDone is there, fetched or not
  Usage usage() const;
  std::string reasoning() const, reply() const;  // all so far

  // The ids drawn so far, a stop token included. logp (may be null): their log-probabilities at the sampling
  // temperature (at 1 where that is 0), the trainer's numbers; computed here where they were not yet.
  Status tokens(std::vector<int32_t>* ids, std::vector<float>* logp) const;

 private:
  explicit Answer(std::shared_ptr<Engine> engine);
  std::shared_ptr<Engine> engine_;
  std::shared_ptr<AnswerState> state_;
  bool fetched_ = false, handed_out_done_ = false;
};

}  // namespace earnest::engine
