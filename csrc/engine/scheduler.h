// SPDX-License-Identifier: Apache-2.0
// The engine's thread: step after step, each with one token of every answer that runs and at most
// `prefill_tokens` of the prompts beside, in equal shares and in turn. So neither a long prompt holds up
// answers, nor answers a prompt. Reading ahead is done when nobody waits.
//
// When the pool is full, caches that nobody uses go first; then the youngest answer gives up its room and
// waits for the older ones. It is computed again from its ids then, with the same bits.
#pragma once

#include <memory>

#include "csrc/engine/arena.h"
#include "csrc/engine/engine_core.h"
#include "csrc/engine/step.h"

namespace earnest::engine {

class Scheduler {
 public:
  explicit Scheduler(EngineCore* core);
  void run();  // until the engine stops

 private:
  using Answering = std::shared_ptr<AnswerState>;

  // Under the lock.
  bool something_to_do() const;
  Status plan(Step* step);
  Status admit();
  Status start(const Answering& answer);
  Status add_answers(Step* step);
  Status add_prompts(Step* step);
  Status add_read_ahead(Step* step);
  void add_ratings(Step* step) const;
  Status make_room(const Answering& answer, bool* found);
  void preempt(const Answering& answer);
  int64_t readable(const Prefix& prefix, int64_t count, Step* step) const;
  void add_row(const std::shared_ptr<SessionState>& session, const Answering& answer, int64_t count,
               Step* step) const;
  void apply(Step* step);
  void apply_chunk(Step* step);
  void advance(const Answering& answer, StepRow* row);
  void take(const Answering& answer, int32_t token);
  void fail_all(const Status& why);

  void deliver() const;  // without the lock

  EngineCore& core_;
  const size_t row_bytes_;
  Arena arena_;
  DecodeGraphs graphs_;
  size_t turn_ = 0;  // whose prompt comes first
  std::vector<Answering> delivering_;
};

}  // namespace earnest::engine
