// SPDX-License-Identifier: Apache-2.0
// What handles do to a dialogue: parts added, messages closed. A session belongs to one thread at a time, so
// that nothing of it changes between two of these steps but what the engine's thread computes; rendering is
// done without the lock.
#pragma once

#include <string_view>

#include "csrc/engine/engine_core.h"
#include "csrc/engine/open_message.h"
#include "csrc/engine/states.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// kBusy while an answer runs; refused while a clip is spoken, where that must not be.
Status check_free(EngineCore* core, const SessionState& session, bool may_speak);

// The open message, if there is one, becomes a closed one.
Status close_open_message(EngineCore* core, SessionState* session);

// A part for the message of this role: the open one if it has it, else a new one.
Status add_part(EngineCore* core, SessionState* session, std::string_view role,
                std::variant<std::string, Chunks> part);

// What of the open message is certain stands in the session's tokens.
Status refresh_certain(EngineCore* core, SessionState* session);

// A piece that is a whole message.
void append_message(EngineCore* core, SessionState* session, const Piece& piece);

}  // namespace earnest::engine
