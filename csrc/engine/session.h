// SPDX-License-Identifier: Apache-2.0
// One dialogue. It keeps the exact ids that the model sees: messages become ids as they are closed, answers
// stay as they were sampled, and what was there is never written anew. So a turn costs what the turn is long.
//
// Text goes to the last message if that has the same role and is open, else to a new one. end_message,
// another role and an answer close it. A call that fails changes nothing; while an answer runs, all that
// would change the dialogue is kBusy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/engine/engine.h"
#include "csrc/engine/template.h"
#include "kernels/common/status.h"

namespace earnest::engine {

struct SessionState;

struct SessionOptions {
  TemplateName template_name = TemplateName::kCanonical;
  bool strip_history = false;  // an answer's thought is taken away when the answer is there; its reply is
                               // read again while nobody waits
  std::string tools;           // a JSON list of schemas, or ""
};

class Session {
 public:
  static Status create(const std::shared_ptr<Engine>& engine, const SessionOptions& options,
                       std::unique_ptr<Session>* session);
  ~Session();  // an answer that runs goes on
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Status add_text(std::string_view role, std::string_view text);
  // A past answer from elsewhere: a closed message.
  Status add_answer(const std::optional<std::string>& reasoning, std::string_view reply);
  // A whole WAV file as a part of a message; one without samples adds nothing. kAudioFormat where it cannot
  // be read.
  Status add_wav(std::string_view role, std::span<const std::byte> wav);
  Status end_message();

  size_t message_count() const;  // the open one counted
  Status message_tokens(size_t message, size_t* tokens) const;

  // A second dialogue with the same past; what was computed for this one is copied when it is needed.
  Status fork(std::unique_ptr<Session>* fork) const;

  // Forgets all but the first messages.
  Status truncate(size_t messages);

  // Reads the closed messages, and the closed chunks of the open one, while no answer waits for the engine.
  Status warm();

  // The dialogue with everything that was computed for it, and back; see session_file.h.
  Status save(const std::string& path);
  static Status load(const std::shared_ptr<Engine>& engine, const std::string& path,
                     std::unique_ptr<Session>* session);

  // The dialogue so far, without the open message's text.
  std::vector<int32_t> ids() const;

  // For the handles of this folder alone.
  const std::shared_ptr<Engine>& engine() const { return engine_; }
  const std::shared_ptr<SessionState>& state() const { return state_; }

 private:
  Session(std::shared_ptr<Engine> engine, std::shared_ptr<SessionState> state);
  static Status open(const std::shared_ptr<Engine>& engine, std::shared_ptr<SessionState> state,
                     std::unique_ptr<Session>* session);
  std::shared_ptr<Engine> engine_;
  std::shared_ptr<SessionState> state_;
};

}  // namespace earnest::engine
