// SPDX-License-Identifier: Apache-2.0
#include "csrc/capi/call.h"

#include <algorithm>
#include <cstring>

#include "csrc/engine/utf8.h"

namespace earnest::capi {
namespace {

constexpr size_t kLongestMessage = 1023;
thread_local char message_of_thread[kLongestMessage + 1] = "";

earnest_status translated(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return EARNEST_OK;
    case StatusCode::kInvalidArgument:
      return EARNEST_INVALID_ARGUMENT;
    case StatusCode::kUnsupported:
      return EARNEST_UNSUPPORTED;
    case StatusCode::kOutOfMemory:
      return EARNEST_OUT_OF_MEMORY;
    case StatusCode::kNotFound:
      return EARNEST_NOT_FOUND;
    case StatusCode::kCorrupt:
      return EARNEST_CORRUPT_MODEL;
    case StatusCode::kContextFull:
      return EARNEST_CONTEXT_FULL;
    case StatusCode::kBusy:
      return EARNEST_BUSY;
    case StatusCode::kTimeout:
      return EARNEST_TIMEOUT;
    case StatusCode::kCancelled:
      return EARNEST_CANCELLED;
    case StatusCode::kAudioFormat:
      return EARNEST_AUDIO_FORMAT;
    case StatusCode::kInternal:
      break;
  }
  return EARNEST_INTERNAL;
}

}  // namespace

Outcome::Outcome(const Status& status) : status_(translated(status.code())), message_(status.message()) {}

Outcome failure(earnest_status status, const char* op, const std::string& argument,
                const std::string& expected, const std::string& got) {
  return {status, std::string("[") + op + "] " + argument + ": expected " + expected + ", got " + got};
}

Outcome required(const char* op, const char* argument, const void* pointer) {
  return pointer ? Outcome() : invalid(op, argument, "something", "NULL");
}

earnest_status remember(earnest_status status, std::string_view message) noexcept {
  size_t bytes = std::min(message.size(), kLongestMessage);
  if (bytes < message.size()) bytes -= engine::unfinished(message.substr(0, bytes));
  std::memcpy(message_of_thread, message.data(), bytes);
  message_of_thread[bytes] = '\0';
  return status;
}

const char* last_error() noexcept { return message_of_thread; }

}  // namespace earnest::capi
