// SPDX-License-Identifier: Apache-2.0
// Many dialogues over one set of weights: the memory of their keys and values, and one thread that computes
// for all of them together.
//
//   Engine   <- Session      one dialogue: messages in, token ids inside
//               SpokenClip   sound that is being spoken into a session
//               Answer       one reply of it, as events
//
// A handle (these four) keeps the engine alive. An engine may be used from any thread, a session with its
// clips and an answer from one thread at a time; Answer::cancel from any. Nothing waits for computation but
// Answer::next, drain, and the end of the last handle, which cancels what still runs and joins the thread.
#pragma once

#include <cstdint>
#include <memory>

#include "csrc/engine/loaded_model.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class EngineCore;

struct EngineOptions {
  uint64_t kv_bytes = 0;  // 0: room for 4 full contexts or a quarter of the machine's memory, the less of
                          // both; on a GPU half of what is free there
  int64_t max_generations = 64;  // that run side by side
  int64_t max_waiting = 256;     // that may wait beside them; one more is kBusy
  int64_t prefill_tokens = 256;  // of prompts that are read between two steps of the answers beside
  bool cuda_graphs = true;       // on a GPU, steps of answers alone become graphs (decode_graphs.h)
};

struct EngineStats {
  int64_t running = 0, waiting = 0, sessions = 0;
  int64_t reading_ahead = 0;  // sessions of which more is read while nobody waits
  int64_t kv_tokens = 0, kv_tokens_used = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;  // since the engine was made
  int64_t read_tokens = 0;     // that the decoder computed: prompts, answers and what was read ahead
  int64_t encoded_chunks = 0;  // of sound
  int64_t steps = 0;
  // Of those on a GPU that were answers alone: done again by a CUDA graph, and launched one by one.
  int64_t graph_steps = 0, plain_steps = 0;
  int64_t recorded_graphs = 0;
  Status graph_trouble;  // why there can be no graphs; once there is one, it stays
};

class Engine {
 public:
  static Status create(std::shared_ptr<const LoadedModel> model, const EngineOptions& options,
                       std::shared_ptr<Engine>* engine);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const LoadedModel& model() const;
  EngineStats stats() const;

  // Takes no new answers from now on and waits for those there are, at most so many milliseconds (-1: for
  // ever); kTimeout where some still run, which go on.
  Status drain(int64_t timeout_ms);

  // For the handles of this folder alone.
  EngineCore& core() { return *core_; }

 private:
  explicit Engine(std::unique_ptr<EngineCore> core);
  std::unique_ptr<EngineCore> core_;
};

}  // namespace earnest::engine
