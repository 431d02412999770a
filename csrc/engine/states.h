// SPDX-License-Identifier: Apache-2.0
// What the handles of one session and of one answer share with the engine's thread. Everything here is read
// and written under EngineCore::mutex, but for what says otherwise.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "csrc/engine/answer.h"
#include "csrc/engine/answer_text.h"
#include "csrc/engine/open_message.h"
#include "csrc/engine/prefix_cache.h"

namespace earnest::engine {

using Clock = std::chrono::steady_clock;

struct SessionState {
  SessionOptions options;
  // The closed messages, what is certain of the open one, and while an answer runs what it has said.
  std::shared_ptr<Prefix> prefix = std::make_shared<Prefix>();
  std::vector<int64_t> ends;            // of the closed messages, in tokens
  std::optional<OpenMessage> open;      // of the session's thread alone
  bool speaking = false;                // of the session's thread alone: a clip is open
  size_t spoken_part = 0;               // which part of the open message that is
  std::shared_ptr<AnswerState> answer;  // that runs
  bool reading_ahead = false;           // stands in EngineCore::idle
  bool abandoned = false;               // its handle is gone

  int64_t closed() const { return ends.empty() ? 0 : ends.back(); }
};

// Events on their way to whoever fetches them. Has a mutex of its own, so that waiting for one holds up
// nobody; that is taken after the engine's.
class EventQueue {
 public:
  void push(Event event);  // joined to the last one where nobody fetched that yet
  bool pop(Event* event);
  // Waits at most so long; false where nothing came.
  bool wait(int64_t timeout_ms, Event* event);

 private:
  bool take(Event* event);
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<Event> events_;
};

struct AnswerState {
  AnswerState(const LoadedModel& loaded, const AnswerOptions& asked, bool inside_thought);

  std::shared_ptr<SessionState> session;
  AnswerOptions options;
  int64_t most_tokens = 0;
  int64_t begin = 0, prompt_end = 0;  // of its tokens in the session's: header, then what it says

  Sampler sampler;
  AnswerText text;
  std::vector<int32_t> drawn;
  std::vector<float> logp;    // of the first of these
  std::vector<char> unrated;  // hidden states that the rest were drawn from
  Finish finish = Finish::kNone;
  Usage usage;
  Clock::time_point started, admitted;

  EventQueue events;

  std::mutex callback_mutex;  // held while the callback runs; taken before every other
  std::function<void(const Event&)> callback;
  std::atomic<bool> has_callback{false};
};

}  // namespace earnest::engine
