// SPDX-License-Identifier: Apache-2.0
// What all handles of one engine share: who waits, who runs, and the dialogues. Its thread is Scheduler's.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "csrc/engine/engine.h"
#include "csrc/engine/prefix_cache.h"
#include "csrc/engine/states.h"

namespace earnest::engine {

class EngineCore {
 public:
  EngineCore(std::shared_ptr<const LoadedModel> loaded, const EngineOptions& asked,
             std::shared_ptr<KVPool> pool);
  ~EngineCore();  // ends the thread

  void run();  // starts it

  // All below is used under this.
  std::mutex mutex;
  std::condition_variable work;   // for the thread: something to do
  std::condition_variable ended;  // for who drains: an answer less

  const std::shared_ptr<const LoadedModel> model;
  const EngineOptions options;
  PrefixCache prefixes;
  std::unordered_set<std::shared_ptr<SessionState>> sessions;
  std::deque<std::shared_ptr<AnswerState>> waiting;
  std::vector<std::shared_ptr<AnswerState>> running;     // the longest running first
  std::deque<std::shared_ptr<SessionState>> idle;        // to be read ahead
  std::vector<std::shared_ptr<AnswerState>> to_deliver;  // whose callback has events to come
  EngineStats totals;
  bool draining = false, stopping = false;
  bool short_of_room = false;  // an answer gave up its room: nobody begins before another has ended

  // The session's tokens are read while nobody waits.
  void read_ahead(const std::shared_ptr<SessionState>& session);
  void stop_reading_ahead(const std::shared_ptr<SessionState>& session);
  // The handle is gone; what was computed is kept as long as there is room.
  void abandon(const std::shared_ptr<SessionState>& session);
  void retire_if_abandoned(const std::shared_ptr<SessionState>& session);

  // The same sound where it is known already.
  std::shared_ptr<HeardChunk> known(std::shared_ptr<HeardChunk> chunk);

  // What follows `from` in the session's tokens becomes this; what agrees is not computed again.
  void replace_tail(SessionState* session, int64_t from, const Piece& piece);

  Status check_queue() const;  // whether one more may wait
  void enqueue(const std::shared_ptr<AnswerState>& answer);
  void post(const std::shared_ptr<AnswerState>& answer, Event event);
  void post(const std::shared_ptr<AnswerState>& answer, std::vector<Delta> deltas);
  void finish(const std::shared_ptr<AnswerState>& answer, Finish how, Status why = {});

  bool nothing_runs() const { return waiting.empty() && running.empty(); }

 private:
  Status close_message(AnswerState* answer);

  std::unordered_map<std::string, std::weak_ptr<HeardChunk>> chunks_;  // by digest
  size_t chunks_checked_ = 64;  // when there are more, those that nobody holds go
  std::thread thread_;
};

double milliseconds(Clock::time_point from, Clock::time_point to);

}  // namespace earnest::engine
