// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/dialogue.h"

#include "csrc/engine/guard.h"

namespace earnest::engine {

Status check_free(EngineCore* core, const SessionState& session, bool may_speak) {
  const std::lock_guard<std::mutex> lock(core->mutex);
  if (session.answer != nullptr) {
    return {StatusCode::kBusy, "[session] answer: expected none that runs, got one"};
  }
  if (!may_speak && session.speaking) {
    return invalid_argument("session", "audio", "the clip committed or destroyed",
                            "one that is being spoken");
  }
  return {};
}

void append_message(EngineCore* core, SessionState* session, const Piece& piece) {
  const std::lock_guard<std::mutex> lock(core->mutex);
  core->replace_tail(session, session->closed(), piece);
  session->ends.push_back(session->prefix->tokens.size());
  session->open.reset();
}

Status close_open_message(EngineCore* core, SessionState* session) {
  if (!session->open) return {};
  Piece piece;
  EARNEST_RETURN_IF_ERROR(
      ids_of(*session->open, session->ends.empty(), *core->model, session->options, &piece));
  append_message(core, session, piece);
  return {};
}

Status add_part(EngineCore* core, SessionState* session, std::string_view role,
                std::variant<std::string, Chunks> part) {
  EARNEST_RETURN_IF_ERROR(check_role(role));
  const std::string_view name = canonical_role(role);
  if (session->open && session->open->role != name) {
    if (session->speaking) {
      return invalid_argument("session", "role", "that of the clip that is being spoken", std::string(role));
    }
    EARNEST_RETURN_IF_ERROR(close_open_message(core, session));
  }
  if (!session->open) session->open = OpenMessage{std::string(name), {}};
  session->open->parts.push_back(std::move(part));
  return {};
}

Status refresh_certain(EngineCore* core, SessionState* session) {
  Piece piece;
  if (session->open) {
    EARNEST_RETURN_IF_ERROR(
        certain_ids_of(*session->open, session->ends.empty(), *core->model, session->options, &piece));
  }
  const std::lock_guard<std::mutex> lock(core->mutex);
  core->replace_tail(session, session->closed(), piece);
  return {};
}

}  // namespace earnest::engine
