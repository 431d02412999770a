// SPDX-License-Identifier: Apache-2.0
// A session in a file: its options, ids, messages, sounds, and the keys and values that were computed.
//
//   "EARNSESS", version, the model's fingerprint; then the fields in the order of session_file.cc, numbers of
//   8 bytes, little endian, each list behind its length; the SHA-256 of all before it.
//
// Written beside its place and renamed there. Read, nothing is believed: lengths are held against the bytes
// that are left before memory is taken, ids against the vocabulary, places against each other. What a file
// says was computed is used for its own session alone, never for another dialogue that begins alike.
#pragma once

#include <memory>
#include <string>

#include "csrc/engine/engine_core.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// No answer runs and no clip is open.
Status write_session(const std::string& path, EngineCore* core, const std::shared_ptr<SessionState>& session);

// kCorrupt: no such file, or one that was damaged; kInvalidArgument: of another model.
Status read_session(const std::string& path, EngineCore* core, std::shared_ptr<SessionState>* session);

}  // namespace earnest::engine
